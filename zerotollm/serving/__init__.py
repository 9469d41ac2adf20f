"""The server: OpenAI's protocol, the scheduler of running generations, and a page to talk to the model.

The action `serve` and `zerotollm.lm_eval_adapter` may import it; it imports data, model and decoding.
"""
