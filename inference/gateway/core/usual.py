"""The usual piece of a stream, as vLLM writes it for one answer: read by one expression, without any JSON.

Whatever differs by a byte is for the full parse: other members, several answers, an end, an error.
"""

import re

_TEXT = rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"'
_EVENT = (
    rb'(data: {"id":"[^"\\\n]*+","object":"(?:chat\.completion\.chunk|text_completion)","created":[0-9]++,'
    rb'"model":"[^"\\\n]*+","choices":\[{"index":0,'
    rb'(?:"delta":{"(?:content|reasoning)":' + _TEXT + rb'}|"text":' + _TEXT + rb"),"
    rb'"logprobs":null,"finish_reason":null(?:,"(?:stop_reason|token_ids|prompt_token_ids)":null)*+}])'
    rb',"usage":{"prompt_tokens":([0-9]{1,9}),"total_tokens":[0-9]{1,9},"completion_tokens":([0-9]{1,9})'
    rb'(?:,"completion_tokens_details":{"reasoning_tokens":[0-9]{1,9}})?+}}\n\n'
)
# From a place on. Four groups: the chunk's size line, the event up to its choices, prompt tokens, output tokens.
read_chunk = re.compile(rb"([0-9a-f]{1,6}\r\n)" + _EVENT + rb"\r\n").match
# The same without the size.
read_event = re.compile(_EVENT).fullmatch
END = b"}\n\n"  # what closes an event behind its choices
