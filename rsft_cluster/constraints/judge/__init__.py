"""A language model as a judge, behind any endpoint that speaks OpenAI's chat completions."""
