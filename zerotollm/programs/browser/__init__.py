"""The program, the style and the skeleton of a page that runs a model. `html_program` reads them.

It holds no module to import. The scripts are one program, in the order of `html_program.SCRIPTS`: text to tokens,
products in WebAssembly, the model, what the page asks of it, the parts of the page, and what a person does to them.
"""
