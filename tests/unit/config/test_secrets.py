"""A key that was put in the wrong place is refused, and no message repeats it."""

from __future__ import annotations

import pytest

from cai_dist.config.loading.load import build_run, load_run
from cai_dist.errors import ConfigError

SECRET = "sk-abcDEF0123456789abcDEF0123456789"
ENDPOINT = {"url": "http://127.0.0.1:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"feedback": {"endpoint": {**ENDPOINT, "api_key_env": SECRET}}}, "feedback.endpoint.api_key_env"),
        ({"feedback": {"endpoint": {**ENDPOINT, "api_key": SECRET}}}, "feedback.endpoint.api_key"),
        ({"feedback": {"endpoint": {**ENDPOINT, "bearer": "hunter2"}}}, "feedback.endpoint.bearer"),
        ({"feedback": {"endpoint": {**ENDPOINT, "headers": {"X": "hunter2"}}}}, "feedback.endpoint.headers"),
        ({"feedback": {"endpoint": {**ENDPOINT, "url": "ftp://me:hunter2@host"}}}, "feedback.endpoint.url"),
        ({"feedback": {"endpoint": "http://me:hunter2@host"}}, "feedback.endpoint"),
        ({"feedback": [{"endpoint": {"api_key": "hunter2"}}]}, "feedback"),
        ({"tracking": {"wandb_api_key": "hunter2"}}, "tracking.wandb_api_key"),
        ({"tracking": {"access_token": "hunter2"}}, "tracking.access_token"),
        ({"password": "hunter2"}, "password"),
        ({"tracking": {"wandb": SECRET}}, "tracking.wandb"),
        ({"models": {"hub": "https://me:hunter2@host/x"}}, "models.hub"),
        ({"cluster": {"client": {"secret": "hunter2"}}}, "cluster.client"),
    ],
)
def test_no_secret_is_repeated(data, key) -> None:
    with pytest.raises(ConfigError) as caught:
        build_run({"name": "x", **data})
    assert f"{key}" in str(caught.value)
    assert "hunter2" not in str(caught.value) and SECRET[:10] not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        f"feedback.endpoint.api-key={SECRET}",
        f"feedback.endpoint.api_key=[{SECRET}",
        "feedback.endpoint.url=http://me:hunter2@host: [",
    ],
)
def test_no_secret_of_the_command_line_is_repeated(tmp_path, override) -> None:
    (tmp_path / "run.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"feedback.endpoint") as caught:
        load_run(tmp_path / "run.yaml", [override])
    assert "hunter2" not in str(caught.value) and SECRET[:10] not in str(caught.value)


@pytest.mark.parametrize("name", [SECRET.replace("-", "_"), "gsk_" + "a1" * 20, "hf_" + "Ab3" * 10, "A" * 65])
def test_a_key_in_place_of_the_name_of_a_variable_is_refused(name) -> None:
    with pytest.raises(ConfigError, match="feedback.endpoint.api_key_env") as caught:
        build_run({"name": "x", "feedback": {"endpoint": {**ENDPOINT, "api_key_env": name}}})
    assert name not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "key", "MY_TEAMS_SECOND_SERVER_KEY_2026"])
def test_names_of_variables(name) -> None:
    assert build_run({"name": "x", "feedback": {"endpoint": {**ENDPOINT, "api_key_env": name}}})


def test_other_values_are_shown() -> None:
    with pytest.raises(ConfigError, match=r"feedback.sampling.max_new_tokens='ten'"):
        build_run({"name": "x", "feedback": {"sampling": {"max_new_tokens": "ten"}}})
    with pytest.raises(ConfigError, match=r"feedback.orders='some'"):
        build_run({"name": "x", "feedback": {"orders": "some"}})
