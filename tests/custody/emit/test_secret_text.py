"""Credentials in texts: by shape and behind names, in any notation; what only reads like one stays."""

from collections.abc import Callable
from functools import partial

import pytest

from custody.emit.redact import DEFAULT, redact
from custody.emit.secret_text import REDACTED, SHAPES
from tests.helpers.growth import check_growth

HEX, B62 = "0123456789abcdef" * 4, "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv" * 2
PEM = "-----BEGIN {0}PRIVATE KEY{1}-----\nMIIEowIBAAKCAQEA\nabc=\n-----END {0}PRIVATE KEY{1}-----"
KEYS = {
    "JSON Web Token": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0."],
    "private key (PEM)": [
        PEM.format("", ""),
        PEM.format("RSA ", ""),
        PEM.format("OPENSSH ", ""),
        PEM.format("PGP ", " BLOCK"),
        PEM.format("EC ", "").replace("\n", "\\n"),
    ],
    "AWS access key id": ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"],
    "GitHub": ["ghp_" + B62[:36], "gho_" + B62[:36], "ghs_" + B62[:36], "github_pat_" + B62[:22] + "_" + B62[:59]],
    "GitLab": ["glpat-" + B62[:20], "glrt-" + B62[:20]],
    "Slack": [
        "xoxb-123456789012-1234567890123-" + B62[:24],
        "xoxp-1-2-3-abcdef0123",
        "xapp-1-A0-1-abcdef0123",
        "xoxe.xoxp-1-" + B62[:40],
    ],
    "Slack webhook": ["hooks.slack.com/services/T00000000/B00000000/" + B62[:24]],
    "Discord webhook": ["discord.com/api/webhooks/123456789/" + B62],
    "Stripe": ["sk_live_" + B62[:24], "sk_test_" + B62[:24], "rk_live_" + B62[:24], "whsec_" + B62[:32]],
    "Google": ["AIza" + B62[:35], "ya29." + B62, "GOCSPX-" + B62[:28], "1//0" + B62],
    "OpenAI, Anthropic": ["sk-" + B62[:48], "sk-proj-" + B62, "sk-ant-api03-" + B62],
    "SendGrid": ["SG." + B62[:22] + "." + B62[:43]],
    "Twilio": ["SK" + HEX[:32]],
    "npm": ["npm_" + B62[:36]],
    "PyPI": ["pypi-AgEIcHlwaS5vcmc" + B62],
    "Hugging Face": ["hf_" + B62[:34]],
    "DigitalOcean": ["dop_v1_" + HEX],
    "Shopify": ["shpat_" + HEX[:32]],
    "Telegram": ["123456789:AA" + B62[:33]],
    "Vault": ["hvs." + B62],
    "Databricks": ["dapi" + HEX[:32]],
    "age": ["AGE-SECRET-KEY-1" + "QPZRY9X8GF2TVDW0" * 3],
    "Docker": ["dckr_pat_" + B62[:27]],
    "Grafana": ["glsa_" + B62[:32] + "_01234567", "glc_" + B62],
    "Sentry": ["sntrys_" + B62],
    "Linear, Notion, Supabase": ["lin_api_" + B62[:40], "ntn_" + B62[:46], "sbp_" + HEX[:40]],
    "New Relic, Postman, 1Password": [
        "NRAK-" + "A1B2C3D4E5F6G7H8I9J0K1L2M3N",
        "PMAK-" + HEX[:24] + "-" + HEX[:34],
        "ops_eyJ" + B62,
    ],
    "Atlassian": ["ATATT3xFfGF0" + B62[:40] + "=1A2B3C4D", "ATCTT3xFfGN0" + B62, "ATBB" + B62[:32]],
    "Groq, xAI, NVIDIA, Replicate": ["gsk_" + B62[:52], "xai-" + B62, "nvapi-" + B62, "r8_" + B62[:37]],
    "Square": ["sq0atp-" + B62[:22], "sq0csp-" + B62[:43], "EAAA" + B62[:60]],
    "Facebook": ["EAACEdEose0cBA" + B62, "EAAG" + B62],
    "Doppler": ["dp.pt." + B62[:43], "dp.st.dev." + B62[:43]],
    "Figma, PlanetScale, Dynatrace, Fly": [
        "figd_" + B62[:40],
        "pscale_tkn_" + B62[:43],
        "dt0c01." + B62[:24].upper() + "." + B62.upper(),
        "fo1_" + B62[:43],
        "fm2_" + B62 * 2,
    ],
    "RubyGems, Pulumi, Brevo, Mailgun, PostHog": [
        "rubygems_" + HEX[:48],
        "pul-" + HEX[:40],
        "xkeysib-" + HEX,
        "key-" + HEX[:32],
        "phx_" + B62[:43],
    ],
    "signature of a URL": ["Signature=" + HEX],
    "DSN of Go": ["user:hunter2@tcp("],
    "JDBC of Oracle": ["jdbc:oracle:thin:scott/tiger@"],
}
SCHEMES = ["Bearer", "bearer", "BEARER", "Token", "Negotiate", "ApiKey"]
NAMED = [
    ("password=hunter2", "password=[redacted]"),
    ("login as ada, password: hunter2, from 192.0.2.1", "login as ada, password: [redacted] from 192.0.2.1"),
    ("API key: hunter2", "API key: [redacted]"),
    ("Access Token = hunter2", "Access Token = [redacted]"),
    ("a=password=hunter2", "a=password=[redacted]"),
    ("password := hunter2", "password := [redacted]"),
    (":password => 'hunter2'", ":password => '[redacted]'"),
    ("{'token': 'hunter2', 'b': 2}", "{'token': '[redacted]', 'b': 2}"),
    ('say {"token": "hun\\"ter2", "b": 2}', 'say {"token": "[redacted]", "b": 2}'),
    ('say {"pin": 1234, "b": 2}', 'say {"pin": [redacted], "b": 2}'),
    ('x="{\\"token\\":\\"hunter2 a\\",\\"b\\":2}"', 'x="{\\"token\\":\\"[redacted]\\",\\"b\\":2}"'),
    ('say credentials: {"a": ["hunter2", "}"]} end', "say credentials: [redacted] end"),
    ('x="password=hunter2" y=1', 'x="password=[redacted]" y=1'),
    ('token="hunter2', 'token="[redacted]'),
    ("User(name='ada', password='hunter2')", "User(name='ada', password='[redacted]')"),
    ("WHERE password = 'hunter2' AND x = 1", "WHERE password = '[redacted]' AND x = 1"),
    ("tool --password hunter2 --user ada", "tool --password [redacted] --user ada"),
    ("tool --api-key=hunter2 --user ada", "tool --api-key=[redacted] --user ada"),
    ("<user>ada</user><password a='b'>hunter2</password>", "<user>ada</user><password a='b'>[redacted]</password>"),
    ("<ns:Password>hunter2</ns:Password>", "<ns:Password>[redacted]</ns:Password>"),
    ("passphrase: correct horse battery\nnext", "passphrase: [redacted]\nnext"),
    ("Server=x;Password=hunter2 a b;Database=y", "Server=x;Password=[redacted];Database=y"),
    ("Server=x;Database=y;Pwd=hunter2 a b", "Server=x;Database=y;Pwd=[redacted]"),
    ("host=x password=hunter2 dbname=y", "host=x password=[redacted] dbname=y"),
    ("https://a.example/x?access_token=hunter2&b=1#c", "https://a.example/x?access_token=[redacted]&b=1#c"),
    ("/x?user[password]=hunter2&b=1", "/x?user[password]=[redacted]&b=1"),
    ("/to?next=https%3A%2F%2Fx%3Ftoken%3Dhunter2%26b%3D1", "/to?next=https%3A%2F%2Fx%3Ftoken%3D[redacted]%26b%3D1"),
    ("https://ada:hunter2@a.example/x", "https://[redacted]@a.example/x"),
    ("https://ada:hun@ter2@a.example/x", "https://[redacted]@a.example/x"),
    ("https://hunter2@a.example/x", "https://[redacted]@a.example/x"),
    ("postgresql+psycopg://ada:hunter2@db:5432/x", "postgresql+psycopg://[redacted]@db:5432/x"),
    ("postgres://ada:hun/ter2@db/x", "postgres://[redacted]@db/x"),
    ("redis://:hunter2@cache:6379/0", "redis://[redacted]@cache:6379/0"),
    ("mongodb+srv://ada:hunter2@a,b,c/x", "mongodb+srv://[redacted]@a,b,c/x"),
    ("https:\\/\\/ada:hunter2@a.example\\/x", "https:\\/\\/[redacted]@a.example\\/x"),
    ("sid=hunter2; Path=/; HttpOnly", "sid=[redacted]; Path=/; HttpOnly"),
    ("theme=hunter2; Path=/; SameSite=Lax", "theme=[redacted]; Path=/; SameSite=Lax"),
    ("Cookie: a=hunter2; b=hunter2", "Cookie: [redacted]"),
    (
        "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic aHVudGVyMg==\r\nX-Api-Key: hunter2\r\nAccept: */*",
        "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: [redacted]\r\nX-Api-Key: [redacted]\r\nAccept: */*",
    ),
    ("curl -H 'Authorization: Bearer hunter2' https://x", "curl -H 'Authorization: [redacted]' https://x"),
    ('Authorization: Digest username="ada", response="hunter2"\nx', "Authorization: [redacted]\nx"),
    ("Basic YWRhOmh1bnRlcjI=", "Basic [redacted]"),
    ("password:\n  hunter2\nuser: ada", "password:\n  [redacted]\nuser: ada"),
    ("Cookie:\r\nHost: x", "Cookie:\r\nHost: x"),
    ("headers=[('Host', 'x'), ('Cookie', 'hunter2')]", "headers=[('Host', 'x'), ('Cookie', '[redacted]')]"),
    ("headers=[(b'cookie', b'hunter2')]", "headers=[(b'cookie', b'[redacted]')]"),
    ("argv=['tool', '--token', 'hunter2', '-v']", "argv=['tool', '--token', '[redacted]', '-v']"),
    ("{'name': 'db_pass', 'old': 'hunter2', 'b': 'x'}", "{'name': 'db_pass', 'old': '[redacted]', 'b': 'x'}"),
    ("{'name': 'token'} {'value': 'x'}", "{'name': 'token'} {'value': 'x'}"),
    ("/to?x=%253Ftoken%253Dhunter2%2526b%253D1", "/to?x=%253Ftoken%253D[redacted]%2526b%253D1"),
    ('mutation { login(user: "ada", password: "hunter2") }', 'mutation { login(user: "ada", password: "[redacted]") }'),
    ("mutation{login(password:hunter2,pin:1){token}}", "mutation{login(password:[redacted],pin:[redacted]){token}}"),
    ("{login(password:$ecret-x){token}}", "{login(password:[redacted]){token}}"),
    ("login with password: $ecret", "login with password: [redacted]"),
    ("/?variables=%7B%22pin%22%3A%22hunter2%22%7D&a=%20", '/?variables={"pin":"[redacted]"}&a= '),
    ("/?a=%20&p%61ssword=hunter2", "/?a= &password=[redacted]"),
    ("/?u=https%3A%2F%2Fada%3Ahunter2%40db", "/?u=https://[redacted]@db"),
    ("Your PIN code: 1234.", "Your PIN code: [redacted]"),
    ("Bearer hunter", "Bearer [redacted]"),
    ("x-shop-key: hunter2", "x-shop-key: [redacted]"),
    ("?shop_key=hunter2&b=1", "?shop_key=[redacted]&b=1"),
    ("curl -u ada:hunter2 https://x", "curl -u ada:[redacted] https://x"),
    ("curl -sSLu 'ada:hunter2 a' https://x", "curl -sSLu 'ada:[redacted]' https://x"),
    ("curl -uada:hunter2 https://x", "curl -uada:[redacted] https://x"),
    ("curl --user ada:hunter2 x", "curl --user ada:[redacted] x"),
    ("curl --proxy-user=ada:hunter2 x", "curl --proxy-user=ada:[redacted] x"),
    ('say "curl -u ada:hunter2"', 'say "curl -u ada:[redacted]"'),
    ('say {\\"curl -u \\"ada:hunter2\\" x', 'say {\\"curl -u \\"ada:[redacted]\\" x'),
    ("smbclient -U ada%hunter2 //x", "smbclient -U ada%[redacted] //x"),
    ("sudo sshpass -p hunter2 ssh -p 22 x", "sudo sshpass -p [redacted] ssh -p 22 x"),
    ("sshpass -phunter2 ssh x", "sshpass -p[redacted] ssh x"),
    ("sshpass -p 'hunter2 a' ssh x", "sshpass -p '[redacted]' ssh x"),
    ("/usr/bin/mysql -h db -u root -phunter2 shop", "/usr/bin/mysql -h db -u root -p[redacted] shop"),
    ("mariadb-dump -phunter2 | gzip", "mariadb-dump -p[redacted] | gzip"),
    ("mysql.exe -phunter2", "mysql.exe -p[redacted]"),
    ("docker login -u ada -p hunter2 r.example", "docker login -u ada -p [redacted] r.example"),
    ("redis-cli -h x -a hunter2 ping", "redis-cli -h x -a [redacted] ping"),
    ("sqlcmd -S x -U sa -P hunter2", "sqlcmd -S x -U sa -P [redacted]"),
    ("ldapsearch -x -D cn=a -w hunter2 -b dc=x", "ldapsearch -x -D cn=a -w [redacted] -b dc=x"),
    ("plink -pw hunter2 x", "plink -pw [redacted] x"),
    ("keytool -storepass hunter2 -v", "keytool -storepass [redacted] -v"),
    ("argv=['curl', '-u', 'ada:hunter2']", "argv=['curl', '-u', 'ada:[redacted]']"),
    ("argv=['sshpass', '-p', 'hunter2', 'x']", "argv=['sshpass', '-p', '[redacted]', 'x']"),
]
HARMLESS = [
    "docker run -u 1000:1000 -p 80:80 nginx",
    "ssh -p 22 ada@x",
    "mkdir -p a/b && cp -p a b",
    "mysql -P3306 -u root -p shop",
    "date -u +%H:%M:%S",
    "journalctl -u nginx.service: failed",
    "gobuster -u https://a.example:8080/x",
    "mysql is slow, mkdir -p x",
    "press any key: now",
    "sort_key=name&page=2",
    "EAAC",
    "dp.pt.x",
    "",
    "a",
    "key_7",
    "192.0.2.17",
    "2001:db8::1",
    "2026-03-01T12:34:56.789012Z",
    "sha256:" + HEX,
    HEX,
    HEX[:40],
    "019ac1b2-7c1e-7abc-8def-0123456789ab",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "ops@example.com",
    "mailto:ada@x.example",
    "https://a.example:8080/x?page=2&sort=name#top",
    "https://a.example/@ada",
    "eyJpZCI6MX0",
    "token expired",
    "Bearer token",
    "bearer of bad news",
    "Basic authentication failed",
    "basic plan",
    "the password is wrong",
    "wrong password",
    "unknown api key",
    "Token::Expired",
    "password=",
    'password="" user=ada',
    "token: null",
    "token: true",
    "tokens=512",
    "max_tokens: 100",
    "token_count=5&page=2",
    "secret://vault/path",
    "sk-learn",
    "disk-usage-0123456789abcdef",
    "task-0123456789abcdef0123",
    "pk_live_" + B62[:24],
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----",
    "tokens:write",
    "api_keys:*",
    "read:secrets",
    "invalid token: expired",
    "bad password: not long enough.",
    "mutation L($p:String!){login(password:$p,pin:0,tokens:[],auth:{}){token user{name}}}",
    "/?q=100%25&r=%7B%22a%22%3A1%7D&s=%zz%C3",
    "{ login(password: $p) { token } }",
    "query Orders($token: String) { x }",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
    "a=b; c=d",
    "SELECT count(*) FROM orders",
    "a < b and c > d",
    "x --verbose y",
    "{not json",
    "[]",
    '{"a":1}',
    '"a"',
    "\ud800",
    "\x00" * 9,
    "@",
    "=",
    "--",
]


@pytest.mark.parametrize(("shape", "key"), [(shape, key) for shape, keys in KEYS.items() for key in keys])
def test_a_shape_is_seen_wherever_it_stands(shape: str, key: str) -> None:
    """Alone, in a sentence, within quotes, behind a mark, twice; and what stands around it stays."""
    for text in ("{}", "see {} here", '"{}"', "x={}", "({})", "a_{}", "{},{}", "é{}é", "\n{}\n"):
        if shape == "signature of a URL":
            text = text.replace("{}", "?{}")
        redacted = redact({"x": text.format(*[key] * 2)})["x"]
        assert key[-12:] not in redacted, text
        assert redacted.count(REDACTED) >= 1
        # A user's name may have an underscore in it.
        assert redacted.startswith(text.partition("{")[0].removesuffix("?")) or shape == "DSN of Go"
    assert shape in SHAPES


def test_each_shape_has_an_example() -> None:
    """So no shape is without a test."""
    assert list(KEYS) == list(SHAPES)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("token", [B62, HEX[:32], "dGhpcyBpcyBh.cnVubmVy~x/y+z=", "x" * 40])
def test_a_scheme_hides_its_token(scheme: str, token: str) -> None:
    """The scheme itself stays."""
    assert redact({"x": f"sent {scheme} {token} twice"}) == {"x": f"sent {scheme} {REDACTED} twice"}


@pytest.mark.parametrize(("text", "redacted"), NAMED)
def test_trap_14_a_name_hides_its_value(text: str, redacted: str) -> None:
    """In each notation, and no more than the value."""
    assert redact({"x": text}) == {"x": redacted}
    assert redact({"x": redacted}) == {"x": redacted}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_reads_like_one_stays(text: str) -> None:
    """To redact it would cost what an auditor looks for."""
    assert redact({"x": text}) == {"x": text}


def repeat(item: str, before: str = "", behind: str = "") -> Callable[[int], bytes]:
    return lambda size: (before + item * (size // len(item)) + behind).encode()


SLOW: dict[str, Callable[[int], bytes]] = {
    **{
        item: repeat(item)
        for item in (
            "a",
            " ",
            "=",
            ":",
            "://",
            "@",
            "--",
            "<",
            ">",
            "\\",
            '"',
            "a=a ",
            "password=",
            "password=a ",
            "password=a;",
            "password=&a",
            "password=a &a",
            "password: ",
            "authorization: a ",
            "authorization:'",
            "token='",
            "token=\\'",
            "passphrase:a ",
            "a[",
            "password[",
            "://a:b",
            "://a:b/@",
            "a@/",
            "--a ",
            "--token ",
            "-u ",
            "-u a",
            "-u a:",
            "-u 'a:",
            "-uuuuuuuuu",
            "mysql ",
            "mysql -p ",
            "mysql -pa ",
            "sshpass -p '",
            "docker login ",
            "redis-cli a,",
            "curl --user ",
            "dp.pt.",
            "EAAC",
            "<a ",
            "<token>",
            "<token a>",
            "<token>a",
            "eyJ",
            "eyJaaaaaaaa.",
            "ghp_",
            "sk-",
            "sk-a-",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN ",
            "hooks.s",
            "AKIA",
            "1//0",
            "a:AA",
            "a-@tcp(",
            "a:a@tcp(",
            "jdbc:oracle:thin:a",
            "bearer ",
            "bearer a",
            "token a ",
            "basic a",
            "; HttpOnly",
            "a=b; HttpOnly\n",
            "%3D",
            "token%3Da",
            "Aa",
            "a_",
            "a.",
            "api key ",
            "token=[",
            'token={"',
            "?Signature=",
            "discord.com/api/webhooks/1",
            "é",
            "\u2028",
            '{"a":',
            "[[",
            "[1,",
            '"\\"',
        )
    },
    "percent": repeat("%25"),
    "percents of percents": repeat("25", "%", "41"),
    "percent-encoded": repeat("%22token%22%3A1%2C"),
    "pairs": repeat("'token','a',"),
    "names beside": repeat("'name':'token','x':1,"),
    "names beside without end": repeat("a,", "'name':'token',"),
    "names within names": repeat('name=\\"name=\\\\\\"'),
    "one long name": repeat("a", "", "=token"),
    "a value without end": repeat('\\"', 'token="'),
    "backslashes": repeat("\\", 'token="'),
    "JSON": repeat("1,", "[", "1]"),
    "JSON with a secret": repeat('{"token":"a"},', "[", "1]"),
    "JSON that is deep": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "JSON in JSON": repeat('\\"token\\":\\"a\\",', '"{', '}"'),
    "many keys": lambda size: b",".join(b"k%d=1" % at for at in range(size // 8)),
}


@pytest.mark.parametrize("shape", SLOW)
def test_trap_14_time_grows_with_size_at_most(shape: str) -> None:
    """Whatever a text has in it, time is in proportion to its size."""
    check_growth(lambda data: DEFAULT.redact({"x": data.decode()}), partial(SLOW[shape]))
