"""What handshakes cost CPU for, by the functions that samples of a process are in."""

from __future__ import annotations

import re

import pandas as pd

from analysis.frames.cpu import df_flame
from analysis.frames.run_view import RunView
from analysis.stacks.function_shares import function_shares

PASSWORD_HASH, TLS_HANDSHAKE = "password hash", "TLS handshake"
_LEAST_WORK_PCT = 50.0
_CRYPTOGRAPHY = "cryptography"
_BROKEN = re.compile(r"\[|[\w.+-]+(?:;[\w.+-]+)?$")
"""A stack that could not be followed to its begin: it ends in a library's assembler."""
_LEAST_WHOLE_COUNT = 10

_WORK: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        PASSWORD_HASH,
        re.compile(
            r"pbkdf2|bcrypt|scrypt|argon2|PKCS5_|blowfish|rfc2898|crypt_r\b"
            # what programs call it, as hash_password, checkPassword, CompareHashAndPassword
            r"|passw(?:or)?d|passphrase|(?:hash|check|verify)_?pw",
            re.IGNORECASE,
        ),
    ),
    (
        TLS_HANDSHAKE,
        re.compile(
            r"SSL_do_handshake|SSL_accept|do_handshake|tls_(?:process|construct|post)|ssl3_"
            r"|tls_early|crypto/tls\.|SSLEngine|Handshaker|ossl_statem|state_machine"
        ),
    ),
    (
        "check of a token or signature",
        re.compile(
            r"jwt|jws|verify|RSA_|rsa_ossl|ecdsa|EC_POINT|ed25519|BN_mod_exp"
            r"|token|authenticat|authoriz|login",
            re.IGNORECASE,
        ),
    ),
    # stacks of a library without frame pointers end in it, and name nobody above
    (
        _CRYPTOGRAPHY,
        re.compile(
            r"libcrypto\.so|EVP_|CRYPTO_|OPENSSL_|ossl_|libsodium|crypto/|(?i:hmac|sha(?:1|256|512))"
            # OpenSSL's assembler, where it is linked into the program: Node
            r"|\bbn_(?:sqr|mul|pow|mont|from|get|gather)|\bmulx?4x|\bsqrx?8x|rsaz_|ecp_nistz|x25519"
        ),
    ),
)
"""What a handshake may cost CPU for, by names of functions: the libraries' and the program's."""


def work_of(view: RunView, pid: int, window_s: tuple[float, float]) -> tuple[str, float]:
    """What most samples of a process are in, of the kinds that are known.

    Args:
        view: The run.
        pid: The process.
        window_s: Only samples of this span.

    Returns:
        The kind, '' for none, and its share in per cent.
    """
    flame = df_flame(view, pid=pid, window_s=window_s)
    # py-spy and perf sample the same time: one may name what the other has no names for
    found = [_kind_of(stacks) for _, stacks in flame.groupby("source", sort=True)]
    known = [each for each in found if each[0]]
    order = [name for name, _ in _WORK]
    name, share = min(known, key=lambda each: order.index(each[0]), default=("", 0.0))
    if name == _CRYPTOGRAPHY:  # a part of the stacks may go on above the library
        whole = _whole(flame[flame["source"] == "native"])
        name = _kind_of(whole)[0] or name if len(whole) else name
    return name, share


def names_hash(function: str) -> bool:
    """Whether a function's name says that it hashes a password."""
    return bool(_WORK[0][1].search(function))


def program_function(view: RunView, pid: int, window_s: tuple[float, float]) -> tuple[str, float]:
    """What a program calls its password hash, where stacks that go on above a library say it.

    Returns:
        The function that most of those are in, '' for none, and its share of all native samples in
        per cent.
    """
    native = df_flame(view, pid=pid, kind="native", window_s=window_s)
    whole = _whole(native)
    if whole.empty:
        return "", 0.0
    shares = function_shares(whole)
    named = shares[shares["function"].str.contains(_WORK[0][1])]
    if named.empty or float(named["share_pct"].iloc[0]) <= _LEAST_WORK_PCT:
        return "", 0.0
    name = str(named["function"].iloc[0])
    of_all = function_shares(native)
    return name, float(of_all["share_pct"][of_all["function"] == name].iloc[0])


def _whole(native: pd.DataFrame) -> pd.DataFrame:
    """Stacks that go on to their begin; none where they are too few to say something."""
    whole = native[~native["stack"].str.match(_BROKEN)]
    return whole if int(whole["sample_count"].sum()) >= _LEAST_WHOLE_COUNT else whole.iloc[:0]


def _kind_of(stacks: pd.DataFrame) -> tuple[str, float]:
    """Of samples of one source; in the order of how much each name says."""
    counts = stacks["sample_count"]
    for name, pattern in _WORK:
        share = 100 * float(counts[stacks["stack"].str.contains(pattern)].sum() / counts.sum())
        if share > _LEAST_WORK_PCT:
            return name, share
    return "", 0.0
