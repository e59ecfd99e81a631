"""glide serve: an HTTP server with OpenAI's API, on warm glideins."""

from __future__ import annotations

import getpass
import logging
from pathlib import Path
from typing import Annotated

import typer

from glide.condor import home
from glide.errors import InputError
from glide.serve.limits import MOST_CALLS
from glide.serve.models import read_catalogue
from glide.serve.run import ServeSettings, locked, run
from glide.serve.users import TokenFile, add_token, new_token
from glide.sweep.workplace import check_site, workplace
from glide.system import publish
from glide.web.guard import is_loopback, listen

PORT = 8460


def serve(
    models: Annotated[
        list[Path], typer.Option("--model", metavar="FILE", help="A sweep file, or a file with `name` and `model`.")
    ] = [],  # noqa: B006 - typer copies it
    host: Annotated[
        str, typer.Option(help="Address or name to listen on. Others than loopback need TLS, or --no-tls.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free port.")] = PORT,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a line `TOKEN USER` for each token; by default one token for you.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", help="A site file: run a factory for it while the server runs.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="File with a TLS certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="File with the certificate's private key (PEM).")] = None,
    no_tls: Annotated[
        bool, typer.Option("--no-tls", help="Serve plain HTTP to other machines: a proxy in front of it does TLS.")
    ] = False,
    most_calls: Annotated[
        int, typer.Option("--calls-per-user", min=1, help="Maximum number of unfinished calls of a user.")
    ] = MOST_CALLS,
    new_token_user: Annotated[
        str | None,
        typer.Option("--new-token", metavar="USER", help="Add a token of this user to the token file, and print it."),
    ] = None,
) -> None:
    """Serve models with OpenAI's API on warm glideins. Example: glide serve --model workflows/serving/serve.yaml

    The `openai` package, and all tools that use this API, work unchanged: set OPENAI_BASE_URL and OPENAI_API_KEY to the
    address and the token that this command names. /v1/chat/completions, /v1/completions and /v1/embeddings are computed
    at once. /v1/files and /v1/batches run as sweeps, which continue while the server is down.

    Each model is kept loaded on at least one glidein, and on up to `glideins` of its file if the calls need more. With
    `idle_seconds` in its file, a model is loaded when it gets a call, and given up this time after the last one. If no
    pool is configured, the embedded pool is used. SIGTERM or Ctrl-C ends the server.
    """
    if new_token_user is not None:
        print(add_token(token_file or _own_token_file(), new_token_user))
        return
    if (certificate is None) != (key is None):
        raise InputError("--certificate and --key belong together; name both")
    catalogue = read_catalogue(models)
    check_site(site, [each.template for each in catalogue.models.values()])
    path = token_file or _own_token()
    tokens = TokenFile(path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    folder = home() / "serve"
    with locked(folder):
        listening = listen(host, port)
        if not is_loopback(host) and certificate is None and not no_tls:
            raise InputError(f"{host} is not loopback, and tokens must not be sent in plain text: name --certificate")
        with workplace(site):
            scheme, address = "https" if certificate else "http", f"[{host}]" if ":" in host else host
            print(f"glide serve: {scheme}://{address}:{listening.getsockname()[1]}/v1", flush=True)
            print(f"the tokens are in {path}; send one as Authorization: Bearer TOKEN", flush=True)
            run(ServeSettings(folder, listening, site, certificate, key, most_calls), catalogue, tokens)


def _own_token_file() -> Path:
    return home() / "serve" / "token"


def _own_token() -> Path:
    """Return the token file of this GLIDE_HOME. If it is missing, create it with a token for this account."""
    file = _own_token_file()
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        publish(file, f"{new_token()} {getpass.getuser()}\n")
    return file
