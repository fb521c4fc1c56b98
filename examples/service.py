"""Base model, adapter and tenants over HTTP, as OpenAI's /v1/embeddings. See docs/service.md.

python examples/service.py adapter --tenants tenants --port 8000     # SWAP_TOKEN in the environment
"""

import argparse
import base64
import hmac
import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from llama_index.core.base.embeddings.base import BaseEmbedding
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel

from llama_index_embeddings_adapted import AdaptedEmbedding, AdapterPool
from llama_index_embeddings_adapted.errors import AdaptedError, EncodeError

ROLES = ("query", "document")


class Asked(BaseModel):
    """What OpenAI's clients send, and ``input_type``, which they send in ``extra_body``."""

    model: str
    input: str | list[str]
    input_type: Literal["query", "document"] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Swap(BaseModel):
    """What is put in place of what: a folder below the root of new versions; none for the base."""

    model: str
    version: str | None = None


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """The models behind the addresses.

    Args:
        base: The base model.
        folder: Of the adapter that is served as ``"adapter"``.
        tenants: A folder per tenant, served as ``"tenant:<name>"``.
        versions: Where new versions come from, a folder each.
    """

    def __init__(self, base: BaseEmbedding, folder: Path, tenants: Path, versions: Path) -> None:
        self.base, self.versions = base, versions
        self.adapter = AdaptedEmbedding.from_pretrained(folder, base)
        self.pool = AdapterPool(tenants, base)
        self.registry = CollectorRegistry()
        names = {"registry": self.registry}
        self.requests = Counter("embeddings_requests", "Requests.", ["model", "status"], **names)
        self.seconds = Histogram("embeddings_seconds", "Seconds per request.", ["model"], **names)
        self.texts = Counter("embeddings_texts", "Texts embedded.", ["model", "role"], **names)
        loaded = Gauge("embeddings_tenants_loaded", "Tenants in memory.", **names)
        loaded.set_function(lambda: len(self.pool.loaded))

    def model(self, name: str) -> BaseEmbedding:
        """Return the model of this name, without its role."""
        if name == "base":
            return self.base
        if name == "adapter":
            return self.adapter
        kind, _, tenant = name.partition(":")
        if kind == "tenant" and tenant in self.pool.names():
            return self.pool[tenant]
        raise RefusedError(
            404, f'model: expected "base", "adapter" or "tenant:<name>", got {name!r}.'
        )

    def embed(self, asked: Asked) -> list[list[float]]:
        """Embed the texts of a request."""
        name, _, suffix = asked.model.rpartition(":")
        name, suffix = (name, suffix) if suffix in ROLES else (asked.model, "")
        role = asked.input_type or suffix or "query"
        if suffix and role != suffix:
            raise RefusedError(400, f'The model says "{suffix}" and input_type says "{role}".')
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not 1 <= len(texts) <= 2048 or not all(texts):
            raise RefusedError(400, "input: expected 1 to 2048 texts, none of them empty.")
        try:
            model = self.model(name)  # asks the base model, where a tenant is read
            vectors = (
                [model.get_query_embedding(text) for text in texts]
                if role == "query"
                else model.get_text_embedding_batch(texts)
            )
        except (AdaptedError, RefusedError):
            raise
        except Exception as error:  # whatever the client of the base model raises
            raise RefusedError(
                502, f"The base model cannot be asked: {type(error).__name__}."
            ) from error
        if asked.dimensions not in (None, len(vectors[0])):
            raise RefusedError(
                400, f"dimensions: this model has {len(vectors[0])} and cuts none off."
            )
        self.texts.labels(_kind(asked.model), role).inc(len(texts))
        return vectors

    def swap(self, wanted: Swap) -> None:
        """Put a version in place of an adapter."""
        folder = None if wanted.version is None else self.versions / wanted.version
        if folder is not None and Path(wanted.version or "..").name != wanted.version:
            raise RefusedError(
                400, f"version: expected the name of a folder, got {wanted.version!r}."
            )
        kind, _, tenant = wanted.model.partition(":")
        if wanted.model == "adapter":
            self.adapter.swap(folder)
        elif kind == "tenant" and folder is not None:
            self.pool.replace(tenant, folder)
        else:
            raise RefusedError(400, 'Expected model "adapter", or "tenant:<name>" and a version.')

    def roll_back(self, wanted: Swap) -> None:
        """Undo the last swap of an adapter."""
        kind, _, tenant = wanted.model.partition(":")
        if wanted.model == "adapter":
            self.adapter.roll_back()
        elif kind == "tenant":
            self.pool.roll_back(tenant)
        else:
            raise RefusedError(400, 'Expected model "adapter" or "tenant:<name>".')


def _kind(model: str) -> str:
    """Return a model's kind: names of tenants come from outside, and labels are kept for ever."""
    kind = model.partition(":")[0]
    return kind if kind in ("base", "adapter", "tenant") else "unknown"


def _coded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def create_app(service: Service, token: str | None) -> FastAPI:
    """Return the application.

    Args:
        service: What answers.
        token: Whoever swaps has to know it; nobody may without.
    """
    app = FastAPI(title="Adapted embeddings")

    @app.post("/v1/embeddings")
    def embeddings(asked: Asked) -> dict[str, Any]:
        began, status = time.perf_counter(), 500
        try:
            vectors = service.embed(asked)
            status = 200
        except RefusedError as refused:
            status = refused.status
            raise
        finally:
            service.requests.labels(_kind(asked.model), status).inc()
            service.seconds.labels(_kind(asked.model)).observe(time.perf_counter() - began)
        data = [
            {"object": "embedding", "index": i, "embedding": _coded(each, asked.encoding_format)}
            for i, each in enumerate(vectors)
        ]
        # Tokens are the base model's to count: LlamaIndex does not tell.
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return {"object": "list", "model": asked.model, "data": data, "usage": usage}

    @app.post("/admin/{job}")
    def admin(job: str, wanted: Swap, authorization: str = Header("")) -> dict[str, str]:
        if not token or not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise RefusedError(401, "Expected the header Authorization: Bearer <SWAP_TOKEN>.")
        jobs = {"swap": service.swap, "roll_back": service.roll_back}
        if job not in jobs:
            raise HTTPException(404)
        jobs[job](wanted)
        return {"model": wanted.model, "done": job}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        names = ["base", "adapter", *(f"tenant:{name}" for name in service.pool.names())]
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "adapter": repr(service.adapter.adapter)}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(service.registry))

    @app.exception_handler(RefusedError)
    @app.exception_handler(AdaptedError)
    @app.exception_handler(RequestValidationError)
    def refused(request: Request, error: Any) -> JSONResponse:
        """Answer as OpenAI does: its clients show the message."""
        status = getattr(error, "status", 502 if isinstance(error, EncodeError) else 400)
        message = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()
        ) if isinstance(error, RequestValidationError) else str(error)  # fmt: skip
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse({"error": {"message": message, "type": kind}}, status)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tenants", type=Path, default=Path("tenants"))
    parser.add_argument("--versions", type=Path, default=Path("versions"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    base = AdaptedEmbedding.from_pretrained(given.folder).base_embed_model
    service = Service(base, given.folder, given.tenants, given.versions)
    uvicorn.run(create_app(service, os.environ.get("SWAP_TOKEN")), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
