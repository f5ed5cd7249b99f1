"""Make .venv: the locked packages and the project itself, with nothing but Python's standard library.

`make` runs this when .venv/.ready is missing, or older than the lock or pyproject.toml.
"""

import fcntl
import hashlib
import html
import os
import re
import ssl
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
READY = VENV / ".ready"
UNFINISHED = VENV / ".unfinished"
SOURCES = [ROOT / "requirements.lock", ROOT / "pyproject.toml"]
INDEX = os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"

# Fetched only where Python has neither ensurepip nor pip.
PIP = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def main() -> None:
    """Bring .venv up to date; start it anew where it is broken or was left half made."""
    if not (3, 11) <= sys.version_info < (3, 13):
        sys.exit(f"Mantel needs Python 3.11 or 3.12; {sys.executable} is {sys.version.split()[0]}.")
    with Path(__file__).open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # of two at once, the second waits and finds all done
        if is_ready():
            return
        new = UNFINISHED.exists() or not works()
        if new:
            print(f"Making .venv with Python {sys.version.split()[0]}; this takes a minute or two, once.", flush=True)
            venv.create(VENV, clear=True, symlinks=True)
        UNFINISHED.touch()
        READY.unlink(missing_ok=True)
        install = [*pip(), "install", "--disable-pip-version-check", "--no-deps", *([] if new else ["--quiet"])]
        run(*install, "--require-hashes", "--only-binary=:all:", "--requirement=requirements.lock")
        run(*install, "--quiet", "--no-build-isolation", "--editable=.")
        UNFINISHED.unlink()
        READY.touch()


def is_ready() -> bool:
    """Whether .venv was finished after the lock and pyproject.toml last changed."""
    return READY.exists() and all(READY.stat().st_mtime >= source.stat().st_mtime for source in SOURCES)


def works() -> bool:
    """Whether .venv has a Python that starts: a link breaks when the Python behind it is removed."""
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", ""], check=False).returncode == 0


def pip() -> list[str]:
    """The command of a pip that installs into .venv: its own, this Python's, or one fetched for it."""
    own = "lib/python3.*/site-packages/pip/__main__.py"
    if find_spec("ensurepip") and not any(VENV.glob(own)):
        run(str(PYTHON), "-m", "ensurepip")
    if any(VENV.glob(own)):
        return [str(PYTHON), "-m", "pip"]
    if find_spec("pip"):
        return [sys.executable, "-m", "pip", f"--python={PYTHON}"]
    wheel = VENV / PIP
    if not wheel.exists():
        wheel.write_bytes(fetch_pip())
    return [str(PYTHON), str(wheel / "pip")]


def fetch_pip() -> bytes:
    """The pinned pip wheel, from the index that pip itself would use."""
    page = urljoin(INDEX.rstrip("/") + "/", "pip/")
    print(f"Neither pip nor ensurepip is here: fetching {PIP}", flush=True)
    try:
        link = re.search(rf'href="([^"]*{re.escape(PIP)})["#]', fetch(page).decode())
        if link is None:
            sys.exit(f"{page} has no {PIP}.")
        wheel = fetch(urljoin(page, html.unescape(link[1])))
    except OSError as error:
        sys.exit(f"Cannot fetch pip: {error}. Set PIP_INDEX_URL or PIP_CERT, or install pip (Debian: python3-pip).")
    if hashlib.sha256(wheel).hexdigest() != PIP_SHA256:
        sys.exit(f"{PIP} does not have the hash it should have: not using it.")
    return wheel


def fetch(url: str) -> bytes:
    """What the index answers, its certificate checked as pip checks it."""
    tls = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    with urlopen(url, context=tls, timeout=60) as answer:  # noqa: S310  the index is the person's own choice
        return bytes(answer.read())


def run(*command: str) -> None:
    """Run a command in the project's folder; its failure is ours."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
