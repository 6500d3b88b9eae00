"""Names that are no adapter's get OpenAI's 404 and reach no file."""

import pytest

from chameleon_lora.adapters.header import WEIGHTS_NAME
from tests.live.client import Connection, Question, Reply, until
from tests.live.servers import BASE, SHARED, Server
from tests.live.stock import PROMPTS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]
BAD_REQUEST, NOT_FOUND = 400, 404


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "../adapters/a1",
        "../outside",
        "a1/",
        "./a1",
        "a1/../a2",
        "a1\x00",
        "..",
        ".hidden",
        "a\\b",
        "A1",
        "x" * 300,
        "x" * 10_000,
        "a1\r\nINFO: all is well",
        "a1\u200b",
        "\u202ea1",
        "\N{CYRILLIC SMALL LETTER A}1",
        "\N{FULLWIDTH LATIN SMALL LETTER A}1",
        "%61%31",
    ],
)
def test_a_name_that_is_no_adapters_is_not_found(server: Server, name: str) -> None:
    """The name gets 404 in OpenAI's form, though files may lie where it points."""
    server.fixtures.place(1, server.adapters.parent / "outside") if name == "../outside" else None
    (reply,) = server.ask([Question(name, PROMPTS[0])])
    assert NOT_FOUND == reply.status
    assert reply.error is not None
    assert ("NotFoundError", NOT_FOUND, "model") == tuple(
        reply.error[key] for key in ("type", "code", "param")
    )


def test_an_absolute_path_is_not_found(server: Server) -> None:
    """The path of an adapter's folder is no name for it, inside the served folder or outside."""
    paths = [server.adapters / "a1", server.fixtures.path(1)]
    replies = server.ask([Question(str(path), PROMPTS[0]) for path in paths])
    assert [NOT_FOUND, NOT_FOUND] == [reply.status for reply in replies]


def test_a_link_that_leads_outside_is_not_found(server: Server) -> None:
    """A link in the folder to an adapter outside of it is neither served nor listed."""
    name = server.fresh_name()
    (server.adapters / name).symlink_to(server.fixtures.path(1))
    (reply,) = server.ask([Question(name, PROMPTS[0])])
    assert NOT_FOUND == reply.status
    assert name not in server.run(lambda client: client.models())


def test_a_file_that_leads_outside_is_refused(server: Server) -> None:
    """An adapter whose weights are a link to outside of the folder is not served: 400 says why."""
    name = server.put(1)
    weights = server.adapters / name / WEIGHTS_NAME
    staged = weights.with_name(".staged")
    staged.symlink_to(server.fixtures.path(1) / WEIGHTS_NAME)
    staged.replace(weights)
    replies: list[Reply] = []

    async def is_refused(client: Connection) -> None:
        async def is_so() -> bool:
            replies.append(await client.ask(Question(name, PROMPTS[0])))
            return replies[-1].status == BAD_REQUEST

        await until(is_so)

    server.run(is_refused)
    assert replies[-1].error is not None
    assert "leads out of the folder of adapters" in replies[-1].error["message"]


def test_none_of_these_is_listed(server: Server) -> None:
    """GET /v1/models lists plain names only, each with the base model as parent."""
    models = server.run(lambda client: client.models())
    assert None is models.pop(BASE)["parent"]
    assert {BASE} == {card["parent"] for card in models.values()}
    assert all(name.replace("-", "").isalnum() for name in models)
