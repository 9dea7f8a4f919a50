"""The floor below every tunnel: what copying and AES-GCM cost, and nothing else."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Final

from rtunnel import _engine
from rtunnel.bench.process import BenchError, python
from rtunnel.bench.relaying import COPY_BYTES
from rtunnel.bench.results import Parameters
from rtunnel.bench.scenario import moving

KEY_BYTES: Final = 16
NONCE_BYTES: Final = 12
GCM_SECONDS: Final = 0.1


def parameters() -> Parameters:
    """Return what the floor depends on, by name."""
    return {
        "KiB a copy of the floor": COPY_BYTES // 1024,
        "cipher of the floor": "AES-128-GCM",
    }


def copying(target: int, action: str, count: int) -> float:
    """Return the CPU seconds per byte for copying from socket to socket."""
    with python("copying", "relaying", "copy", target) as child:
        port = int(child.read_line())
        before_s = child.cpu_s()
        with moving("copying", port, action, count):
            return (child.cpu_s() - before_s) / count


def gcm(*, sealing: bool) -> float:
    """Return the CPU seconds per byte of AES-128-GCM, by the engine's own libcrypto."""
    crypto = _libcrypto()
    context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    cipher = ctypes.c_void_p(crypto.EVP_aes_128_gcm())
    begin = crypto.EVP_EncryptInit_ex if sealing else crypto.EVP_DecryptInit_ex
    update = crypto.EVP_EncryptUpdate if sealing else crypto.EVP_DecryptUpdate
    key, nonce = bytes(KEY_BYTES), bytes(NONCE_BYTES)
    if context.value is None or not begin(context, cipher, None, key, nonce):
        raise BenchError("libcrypto has no AES-128-GCM")
    data = ctypes.create_string_buffer(COPY_BYTES)
    written = ctypes.c_int()
    done = 0
    begin_s = time.thread_time()
    while (used_s := time.thread_time() - begin_s) < GCM_SECONDS:
        update(context, data, ctypes.byref(written), data, COPY_BYTES)
        done += COPY_BYTES
    crypto.EVP_CIPHER_CTX_free(context)
    return used_s / done


@cache
def _libcrypto() -> ctypes.CDLL:
    path = _engine.load_libcrypto()[0]
    try:
        crypto = ctypes.CDLL(path)
        for name in ("EVP_CIPHER_CTX_new", "EVP_aes_128_gcm"):
            getattr(crypto, name).restype = ctypes.c_void_p
    except (OSError, AttributeError) as error:
        raise BenchError(f"the floor needs {path} itself: {error}") from error
    return crypto
