"""Measure a trained model: loss, likelihood of texts, translations, labels, causality; and the reports on them.

Runs, sessions, actions and studies may import it; it imports data, model, training, decoding and run_directory.
"""
