"""The HTTP service: the original release's ``PUT /api`` and OpenAI's completions, over one model and one worker thread.

`row` is one text under generation, `sampling` chooses the next token of many of them, `batch` runs the model over them,
`engine` is the thread and its queue. `release_api` and `openai_*` read requests and write replies; `app` puts them
behind addresses, and `server` runs it. Only `app`, `server` and `http` need the ``serve`` extra.
"""
