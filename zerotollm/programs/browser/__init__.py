"""The program, the style and the skeleton of the page that `html_program` writes.

The scripts are one program, in the order of `html_program.SCRIPTS`: text to tokens, products in WebAssembly, the model,
what the page asks of it, the parts of the page, and what a person does to them.
"""
