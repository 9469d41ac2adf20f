"""Answers as text: tables for a terminal, a Markdown table, and sections of a page.

Only the actions explain and report import from here.
"""
