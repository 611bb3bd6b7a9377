"""Which names make a value secret, in any spelling, and which near ones do not."""

import pytest

from custody.emit.redact import DEFAULT, Redaction
from custody.emit.secret_names import Verdict, verdict
from custody.format.events import EVENT_TYPES

SECRET = [
    "password",
    "Password",
    "PASSWORD",
    "userPassword",
    "user_password",
    "user-password",
    "user.password",
    "passwd",
    "db_passwd",
    "pwd",
    "smtp_pw",
    "passphrase",
    "passcode",
    "password1",
    "password_2",
    "new_password",
    "oldPassword",
    "password_confirmation",
    "passwordHash",
    "password_plain",
    "userpassword",
    "PGPASSWORD",
    "MYSQL_ROOT_PASSWORD",
    "PasswordBase64",
    "kennwort",
    "passwort",
    "secret",
    "client_secret",
    "clientSecret",
    "secret_key",
    "secretKey",
    "secretkey",
    "secret_value",
    "app-secret",
    "webhookSecret",
    "totp_secret",
    "token",
    "access_token",
    "accessToken",
    "ACCESS_TOKEN",
    "refresh_token",
    "id_token",
    "idToken",
    "authToken",
    "x-auth-token",
    "csrf_token",
    "csrftoken",
    "xsrf",
    "X-CSRF-Token",
    "bearer_token",
    "token_v2",
    "token_hash",
    "deviceToken",
    "session_token",
    "apitoken",
    "api_key",
    "apiKey",
    "apikey",
    "APIKEY",
    "API_KEY",
    "X-Api-Key",
    "x_api_key",
    "api-key",
    "APIKey",
    "stripe_api_key",
    "apiKeySecret",
    "authorization",
    "Authorization",
    "Proxy-Authorization",
    "authorization_header",
    "HTTP_AUTHORIZATION",
    "authorization_code",
    "cookie",
    "Cookie",
    "Set-Cookie",
    "cookie_value",
    "session_cookie",
    "jwt",
    "JWT",
    "user_jwt",
    "bearer",
    "auth",
    "basic_auth",
    "http_auth",
    "credential",
    "aws_credential",
    "private_key",
    "privateKey",
    "ssh_key",
    "signing_key",
    "encryption_key",
    "master_key",
    "access_key",
    "secret_access_key",
    "aws_secret_access_key",
    "AWS_SECRET_ACCESS_KEY",
    "AccountKey",
    "SharedAccessKey",
    "Ocp-Apim-Subscription-Key",
    "session",
    "session_id",
    "sessionId",
    "sessionid",
    "PHPSESSID",
    "JSESSIONID",
    "connect.sid",
    "sid",
    "pin",
    "user_pin",
    "otp",
    "totp",
    "mfa_code",
    "PIN code",
    "app_key",
    "DD-APPLICATION-KEY",
    "verification_code",
    "recovery_code",
    "backup_code",
    "cvv",
    "cvc",
    "mnemonic",
    "seed_phrase",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-Credential",
    "X-Goog-Signature",
    "sig",
    "connection_string",
    "ConnectionString",
    "db.password.value",
    "user[password]",
    "--password",
    "--api-key",
    "keypair",
    "shop_key",
    "shopKey",
    "x-shop-key",
    "X-Shop-Key",
    "X_SHOP_KEY",
    "HTTP_X_SHOP_KEY",
    "x-shop-key-2",
    "shop_key_7",
    "x-key",
    "shop_key_value",
    "shopKeyPlain",
    "shop key",
    "zz9key_key",
    "new_key",
    "storepass",
]
PLURAL = [
    "passwords",
    "tokens",
    "secrets",
    "api_keys",
    "apiKeys",
    "credentials",
    "cookies",
    "access_tokens",
    "max_tokens",
    "pass",
    "user_pass",
    "shop_keys",
    "shopKeys",
]
PLAIN = [
    "api_key_id",
    "apiKeyId",
    "API_KEY_ID",
    "api_key_name",
    "api_key_prefix",
    "api_key_count",
    "apikeyid",
    "access_key_id",
    "AWS_ACCESS_KEY_ID",
    "token_count",
    "tokenCount",
    "token_type",
    "token_id",
    "tokenId",
    "token_expiry",
    "token_expires_at",
    "tokens_used",
    "token_limit",
    "token_bucket",
    "tokenizer",
    "tokenized",
    "tokenize",
    "tokenization",
    "tokencount",
    "total_tokens_used",
    "token_version",
    "password_changed_at",
    "passwordChangedAt",
    "password_policy",
    "password_length",
    "password_expired",
    "password_reset",
    "password_strength",
    "password_age_days",
    "passwordless",
    "secretary",
    "secretariat",
    "secret_id",
    "secret_name",
    "secret_arn",
    "secret_version",
    "authorization_url",
    "authorization_status",
    "authorization_endpoint",
    "authorization_granted",
    "cookie_consent",
    "cookie_policy",
    "cookie_domain",
    "credential_id",
    "credential_type",
    "session_count",
    "session_id_count",
    "session_age",
    "session_duration_ms",
    "auth_method",
    "auth_type",
    "auth_provider",
    "auth_attempt",
    "auth_time",
    "oauth",
    "author",
    "authors",
    "authz",
    "authority",
    "authorized",
    "key",
    "keys",
    "key_id",
    "key_version",
    "key_age_days",
    "public_key",
    "primary_key",
    "foreign_key",
    "partition_key",
    "sort_key",
    "keyboard",
    "monkey",
    "sortKey",
    "primary-key",
    "cache_key",
    "idempotency-key",
    "s3_key",
    "S3Key",
    "object_keys",
    "i18n_key",
    "unknown key",
    "any key",
    "shop_key_id",
    "shopKeyVersion",
    "shop_key_count",
    "site_key",
    "verify_key",
    "kms_key",
    "hotkey",
    "key_7",
    "pinned",
    "spin",
    "opinion",
    "shipping",
    "compass",
    "passport",
    "bypass",
    "passenger",
    "passed",
    "pass_count",
    "pass_rate",
    "bypassed",
    "signature",
    "query_signature",
    "design",
    "designer",
    "sigma",
    "signal",
    "side",
    "inside",
    "resident",
    "pinterest",
    "otpauth_issuer",
    "mission",
    "emission",
    "id",
    "name",
    "email",
    "user",
    "username",
    "user_agent",
    "host",
    "path",
    "url",
    "query",
    "operation",
    "message",
    "status",
    "code",
    "error_code",
    "status_code",
    "country_code",
    "zip_code",
    "encoding",
    "session_length",
]
OURS = [
    "event_id",
    "source",
    "source_seq",
    "trace_id",
    "span_id",
    "document_hash",
    "query_signature",
    "aliases",
    "root_fields",
    "depth",
    "introspection",
    "operation_name",
    "client_request_id",
    "client_ip_source",
    "batch_index",
    "actor",
    "errors",
    "frames",
    "emitter",
    "service",
    "instance",
]


def verdicts(names: list[str]) -> dict[str, Verdict]:
    """Return the verdict of the built-in rules on each name."""
    return {name: DEFAULT.verdict_on(name) for name in names}


def test_names_of_secrets() -> None:
    """They hide whatever their value is, apart from objects for those that may be one."""
    kinds = {Verdict.SECRET, Verdict.TEXTS}
    assert {name for name, kind in verdicts(SECRET).items() if kind not in kinds} == set()


def test_names_that_may_count() -> None:
    """Their numbers are counts, all else is secret."""
    assert {name for name, kind in verdicts(PLURAL).items() if kind is not Verdict.NOT_NUMBERS} == set()


def test_near_misses() -> None:
    """A name that is about a secret, or only reads like one, hides nothing."""
    assert {name for name, kind in verdicts(PLAIN).items() if kind is not Verdict.PLAIN} == set()


def test_no_field_of_ours_is_a_secret() -> None:
    """Neither one of the six types, nor one that emitters add."""
    ours = {name for kind in EVENT_TYPES.values() for name in kind.__struct_fields__} | {"event_type", *OURS}
    assert {name for name in ours if DEFAULT.verdict_on(name) is not Verdict.PLAIN} == set()


def test_a_text_has_the_same_rules() -> None:
    """A name hides what stands behind it in a text too: the quick look beforehand misses none."""
    shown = {name: DEFAULT.redact({"x": f"{name}=hunter2"})["x"] for name in [*SECRET, *PLURAL]}
    assert {name for name, text in shown.items() if "hunter" in text} == set()
    shown = {name: DEFAULT.redact({"x": f"{name}=hunter2"})["x"] for name in PLAIN}
    assert {name for name, text in shown.items() if "hunter" not in text} == set()


@pytest.mark.parametrize(
    "name", ["", "-", "___", "7", "\ud800", "\x00", "пароль", "密码", "k" * 100_000, "A" * 100_000]
)
def test_any_name_gets_a_verdict(name: str) -> None:
    """Also those without a word; of a long one the end decides."""
    assert DEFAULT.verdict_on(name) is Verdict.PLAIN
    assert DEFAULT.verdict_on(f"{name}_password") is Verdict.SECRET


@pytest.mark.parametrize("name", ["taxId", "tax_id", "TAX-ID", "customer_tax_id", "taxid"])
def test_users_add_names_in_any_spelling(name: str) -> None:
    """Alone, or at the end of a longer name; and in texts."""
    rules = Redaction(keys=frozenset({"tax-id"}))
    assert rules.verdict_on(name) is Verdict.SECRET
    assert DEFAULT.verdict_on(name) is Verdict.PLAIN
    assert rules.verdict_on("syntax_ids") is Verdict.PLAIN
    assert rules.redact({"a": f"{name}: 12-34"}) == {"a": f"{name}: [redacted]"}
    assert rules.redact({name: 1234}) == {name: "[redacted]"}


def test_users_take_names_out() -> None:
    """In any spelling, and this name alone."""
    rules = Redaction(plain=frozenset({"session_id"}))
    assert rules.verdict_on("sessionId") is Verdict.PLAIN
    assert rules.verdict_on("user_session_id") is Verdict.SECRET


def test_a_verdict_needs_no_redaction() -> None:
    """It is a function of the name and the user's names."""
    assert verdict("colour", frozenset({"colour"}), frozenset()) is Verdict.SECRET
    assert verdict("colour", frozenset({"colour"}), frozenset({"colour"})) is Verdict.PLAIN
