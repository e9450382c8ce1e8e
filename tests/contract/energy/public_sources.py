"""The public sources of price, colour, carbon and weather, as small servers on loopback.

They answer in the form of the real ones: same paths' ends, same fields, same status codes.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from aiohttp import web
from aiohttp.typedefs import Handler

from nuage.energy.tariffs import PARIS

CLIENT = "6e1f-client:9b2c-secret"
TOKEN = "0d5e-security-token"


def local(*parts: int) -> float:
    """Return an instant of local time."""
    year, month, day, hour, minute = (*parts, 0, 0)[:5]
    return datetime(year, month, day, hour, minute, tzinfo=PARIS).timestamp()


def utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%MZ")


def a44(days: dict[date, dict[int, float]], *, resolution_min: int = 60) -> bytes:
    """Return day-ahead prices by local day and position; curve type A03."""
    series = []
    for number, (day, prices) in enumerate(days.items(), start=1):
        begin_s = local(day.year, day.month, day.day)
        after = day + timedelta(days=1)
        end_s = local(after.year, after.month, after.day)
        points = "".join(
            f"<Point><position>{position}</position>"
            f"<price.amount>{price:.2f}</price.amount></Point>"
            for position, price in prices.items()
        )
        series.append(
            f"<TimeSeries><mRID>{number}</mRID><auction.type>A01</auction.type>"
            '<in_Domain.mRID codingScheme="A01">10YFR-RTE------C</in_Domain.mRID>'
            "<currency_Unit.name>EUR</currency_Unit.name>"
            "<price_Measure_Unit.name>MWH</price_Measure_Unit.name><curveType>A03</curveType>"
            f"<Period><timeInterval><start>{utc(begin_s)}</start><end>{utc(end_s)}</end>"
            f"</timeInterval><resolution>PT{resolution_min}M</resolution>{points}</Period>"
            "</TimeSeries>"
        )
    name = "urn:iec62325.351:tc57wg16:451-3:publicationdocument:7:3"
    return (
        f'<?xml version="1.0" encoding="utf-8"?><Publication_MarketDocument xmlns="{name}">'
        f"<mRID>a</mRID><type>A44</type>{''.join(series)}</Publication_MarketDocument>"
    ).encode()


def no_prices() -> bytes:
    """Return what ENTSO-E says before the auction."""
    return (
        b'<Acknowledgement_MarketDocument xmlns="urn:iec62325.351:tc57wg16:451-1:x:7:0">'
        b"<Reason><code>999</code><text>No matching data found for A44</text></Reason>"
        b"</Acknowledgement_MarketDocument>"
    )


def eco2mix(carbon: dict[float, object]) -> bytes:
    """Return quarter hours of éCO2mix (API 2.1), the newest first as it is asked."""
    results = [
        {
            "perimetre": "France", "nature": "Données temps réel",
            "date_heure": datetime.fromtimestamp(at_s, UTC).isoformat(), "taux_co2": value,
            "consommation": 52_310, "eolien": "6120", "solaire": 1043, "hydraulique": 7200,
            "bioenergies": 905, "nucleaire": 41_877,
        }
        for at_s, value in sorted(carbon.items(), reverse=True)
    ]  # fmt: skip
    return json.dumps({"total_count": len(results), "results": results}).encode()


def tempo(colours: dict[date, str]) -> bytes:
    """Return a Tempo calendar."""
    values = [
        {
            "start_date": datetime(d.year, d.month, d.day, tzinfo=PARIS).isoformat(),
            "value": colour, "updated_date": "2026-11-25T10:20:00+01:00",
        }
        for d, colour in colours.items()
    ]  # fmt: skip
    return json.dumps({"tempo_like_calendars": {"values": values}}).encode()


def open_meteo(celsius: dict[float, float | None], dew_point: float = 8.0) -> bytes:
    """Return a forecast by the hour."""
    return json.dumps({
        "latitude": 48.84, "longitude": 2.62, "utc_offset_seconds": 0, "timezone": "GMT",
        "hourly_units": {"time": "unixtime", "temperature_2m": "°C", "dew_point_2m": "°C"},
        "hourly": {
            "time": [int(at_s) for at_s in celsius], "temperature_2m": list(celsius.values()),
            "dew_point_2m": [dew_point] * len(celsius),
        },
    }).encode()  # fmt: skip


@dataclass(slots=True)
class Sources:
    """What the servers say; a status other than 200 is said instead, 302 leads elsewhere.

    `heard` is all that came in, at any of them or elsewhere.
    """

    base: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    heard: dict[str, str] = field(default_factory=dict)
    tokens: int = 0

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"


@asynccontextmanager
async def public_sources() -> AsyncIterator[Sources]:
    """Serve eco2mix, day-ahead, tempo (with its token) and weather."""
    sources = Sources()

    def answer(name: str, is_let_in: Callable[[web.Request], bool]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            sources.asked.append(name)
            if not is_let_in(request):
                return web.Response(status=401, text="Unauthorized")
            status = sources.status.get(name, 200)
            leads = {"Location": f"/elsewhere?{request.query_string}"} if status == 302 else None
            return web.Response(status=status, body=sources.answers.get(name, b""), headers=leads)

        return handle

    @web.middleware
    async def hear(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = request.path.strip("/")
        came = f"{request.path_qs} {dict(request.headers)}\n"
        sources.heard[name] = sources.heard.get(name, "") + came
        return await handler(request)

    def has_token(request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer t{sources.tokens}"

    async def give_token(request: web.Request) -> web.Response:
        import base64

        known = f"Basic {base64.b64encode(CLIENT.encode()).decode()}"
        if request.headers.get("Authorization") != known:
            return web.Response(status=401)
        assert (await request.text()) == "grant_type=client_credentials"
        sources.tokens += 1
        body = {"access_token": f"t{sources.tokens}", "token_type": "Bearer", "expires_in": 7200}
        return web.json_response(body)

    app = web.Application(middlewares=[hear])
    app.router.add_get("/eco2mix", answer("eco2mix", lambda r: int(r.query["limit"]) <= 100))
    app.router.add_get(
        "/day-ahead", answer("day-ahead", lambda r: r.query["securityToken"] == TOKEN)
    )
    app.router.add_get("/tempo", answer("tempo", has_token))
    app.router.add_get("/weather", answer("weather", lambda r: r.query["timeformat"] == "unixtime"))
    app.router.add_post("/token", give_token)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    sources.base = f"http://{host}:{port}"
    try:
        yield sources
    finally:
        await runner.cleanup()
