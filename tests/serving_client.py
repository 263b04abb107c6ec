"""Calls into the server's ASGI application, and what tests make of its answers. Needs httpx."""

import asyncio

import httpx
import numpy as np

JSON = {"content-type": "application/json"}


class Client:
    """Synchronous calls into an ASGI application, each in an event loop of its own."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, **arguments):
        async def call():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(call())

    def predict(self, inputs, **keys):
        return self("POST", "/predict", json=dict(keys, inputs=inputs))

    def close(self):
        self.app.state.table.close()


def softmax(logits):
    values = np.exp(logits - logits.max())
    return values / values.sum()


def by_label(answer):
    return {item["label"]: item["score"] for item in answer}
