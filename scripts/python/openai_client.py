"""Talks to a running `lmm-serve` with PyPI's `openai`, unchanged, and checks what it gets.

    lmm-serve assets/shapes-lmm-s --sae sae --port 30000
    python openai_client.py http://127.0.0.1:30000/v1 [--steer 17=30]

The pictures are drawn here. Exit code 1 when an answer is not what the same question gave in another way.
"""

import argparse
import asyncio
import base64
import io
import math
import os
import sys

import openai
from PIL import Image, ImageDraw

QUESTION = "which shape is red ?"
checks = {"right": 0, "wrong": 0}


def check(what, right, detail=""):
    checks["right" if right else "wrong"] += 1
    print(f"{'ok   ' if right else 'WRONG'} {what}{f': {detail}' if detail else ''}")


def picture(colour, shape):
    image = Image.new("RGB", (96, 96), (225, 225, 225))
    getattr(ImageDraw.Draw(image), shape)((28, 28, 66, 66), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def messages(*pictures, question=QUESTION):
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    return None


def talk(client, model, steer):
    def ask(what, **options):
        return client.chat.completions.create(model=model, messages=what, temperature=0, **options)

    ring, square = picture((200, 30, 30), "ellipse"), picture((30, 60, 200), "rectangle")
    check("the model is listed", client.models.retrieve(model).id == model)

    plain = ask([{"role": "user", "content": QUESTION}])
    usage = plain.usage
    check("words alone", plain.choices[0].finish_reason in ("stop", "length"), repr(plain.choices[0].message.content))
    check("usage adds up", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage.total_tokens)

    one = ask(messages(ring))
    said = one.choices[0].message.content
    check("a picture", one.usage.prompt_tokens > usage.prompt_tokens and said, repr(said))
    two = ask(messages(ring, square))
    check("two pictures", two.usage.prompt_tokens > one.usage.prompt_tokens, repr(two.choices[0].message.content))

    caption = messages(ring, question="describe the picture .")
    whole = ask(caption, logprobs=True, top_logprobs=2)
    words = whole.choices[0].message.content
    chunks = list(ask(caption, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    check("a stream says the same", "".join(pieces) == words, f"{len(pieces)} pieces, {words!r}")
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    check("and ends the same", ends == [whole.choices[0].finish_reason] and chunks[-1].usage == whole.usage, ends)

    logged = whole.choices[0].logprobs.content
    check("tokens are the text", "".join(token.token for token in logged) == words, f"{len(logged)} tokens")
    greedy = all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in logged)
    likelihood = math.exp(sum(token.logprob for token in logged))
    check("greedy takes the likeliest", greedy and all(len(token.top_logprobs) == 2 for token in logged), f"p = {likelihood:.3g}")

    seeded = [ask(caption, extra_body={"temperature": 1.5}, seed=seed).choices[0].message.content for seed in (3, 3, 4)]
    check("a seed is a text", seeded[0] == seeded[1], seeded)
    stop = words.split()[1]
    stopped = ask(caption, stop=stop).choices[0]
    check("a stop text", stopped.finish_reason == "stop" and stopped.message.content == words[: words.index(stop)], repr(stop))
    short = ask(caption, max_completion_tokens=2)
    check("a limit", short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2)

    error = refused(openai.NotFoundError, lambda: client.chat.completions.create(model="none", messages=caption))
    check("another model is not found", error is not None and error.code == "model_not_found")
    error = refused(openai.BadRequestError, lambda: ask(caption, n=2))
    check("two answers are refused", error is not None and error.param == "n")

    if steer:
        feature, value = steer.split("=")
        steered = ask(caption, max_tokens=12, extra_body={"steer": {feature: float(value)}}).choices[0].message.content
        check("a steered answer differs", steered != words, repr(steered))
        check("no steering", ask(caption, extra_body={"steer": {}}).choices[0].message.content == words)
    return caption, words


async def at_once(client, model, caption, words):
    ask = [client.chat.completions.create(model=model, messages=caption, temperature=0) for _ in range(20)]
    answers = {answer.choices[0].message.content for answer in await asyncio.gather(*ask)}
    check("20 at once", answers == {words}, answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--steer", metavar="FEATURE=VALUE", help="a feature whose value changes the answer")
    args = parser.parse_args()
    key = os.environ.get("LMM_SERVE_API_KEY", "none")
    client = openai.OpenAI(base_url=args.url, api_key=key)
    model = client.models.list().data[0].id
    print(f"openai {openai.__version__}, model {model}")
    caption, words = talk(client, model, args.steer)
    asyncio.run(at_once(openai.AsyncOpenAI(base_url=args.url, api_key=key), model, caption, words))
    print(f"{checks['right']} of {sum(checks.values())} as expected")
    return 1 if checks["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
