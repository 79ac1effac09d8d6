"""Several specialised LLM experts behind one endpoint, with a router that knows when to abstain."""
