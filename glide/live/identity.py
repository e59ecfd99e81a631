"""What a server keeps between its starts: its name, its certificate for model servers, and the secrets of its jobs."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from glide.system import publish

YEARS = 20  # the certificate is only compared with its fingerprint, so its end matters little


@dataclass
class LiveIdentity:
    """The identity of a server of live calls, in the folder `folder`.

    Attributes:
        run: value of the attribute GlideRun of this server's standing jobs.
        key: secret from which the secrets of all connections are derived.
        port: port on which model servers connect; 0 before the first start.
        uses: for each standing job, the number of accepted connections. The next one needs another secret.
        unconfirmed: jobs whose last connection has sent nothing after its welcome. They may not have the next secret.
    """

    folder: Path
    run: str
    key: bytes = field(repr=False)
    port: int = 0
    uses: dict[str, int] = field(default_factory=dict)
    unconfirmed: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, folder: Path, run: str = "") -> LiveIdentity:
        """Read the identity in a folder. If there is none, make a new one.

        Args:
            run: value of GlideRun for a new identity; by default a random name.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError, ValueError, KeyError, TypeError):
            fields = json.loads((folder / "identity.json").read_text("utf-8"))
            return cls(folder, fields["run"], bytes.fromhex(fields["key"]), fields["port"], fields["uses"])
        identity = cls(folder, run or f"serve-{secrets.token_hex(4)}", secrets.token_bytes(32))
        identity.save()
        return identity

    def save(self) -> None:
        fields = {"run": self.run, "key": self.key.hex(), "port": self.port, "uses": self.uses}
        publish(self.folder / "identity.json", json.dumps(fields), durable=False)

    def secret(self, job: str, template: str, uses: int = 0) -> str:
        """Return a secret of a job.

        Args:
            template: digest of the only template that the job may serve.
            uses: number of connections before the one that needs the secret.
        """
        return hmac.new(self.key, f"{job} {template} {uses}".encode(), hashlib.sha256).hexdigest()

    def use(self, job: str, template: str, secret: str) -> str | None:
        """Return the secret of the connection after this one; None if `secret` is not valid for this one."""
        uses = self.uses.get(job, 0)
        if job in self.unconfirmed and hmac.compare_digest(secret.encode(), self._at(job, template, uses - 1)):
            return self.secret(job, template, uses)  # the earlier connection broke before its welcome arrived
        if not hmac.compare_digest(secret.encode(), self._at(job, template, uses)):
            return None
        self.uses[job] = uses + 1
        self.unconfirmed.add(job)
        with suppress(OSError):  # with a full disk, only a restart could accept the secret again
            self.save()
        return self.secret(job, template, uses + 1)

    def _at(self, job: str, template: str, uses: int) -> bytes:
        return self.secret(job, template, uses).encode()

    def confirm(self, job: str) -> None:
        """Note that a connection has got its welcome, and with it the next secret."""
        self.unconfirmed.discard(job)

    def forget_others(self, jobs: set[str]) -> None:
        """Forget the connections of all jobs but these."""
        self.uses = {job: count for job, count in self.uses.items() if job in jobs}

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def fingerprint(self) -> str:
        """sha256 of the certificate, in hexadecimal form."""
        found = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        return found.fingerprint(hashes.SHA256()).hex()

    def tls(self) -> ssl.SSLContext:
        """Return the TLS settings for model servers. Make a key and a certificate if there are none."""
        if not self.certificate.exists():
            publish(self.certificate, _new_certificate())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate)
        return context


def _new_certificate() -> bytes:
    """Return a new private key and a certificate that it has signed itself, both in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "glide serve")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS)).sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
