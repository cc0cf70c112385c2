import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.fake_service import FACTS, FakeService

PUBLIC = {
    *("/load_model", "/unload_model", "/train", "/resume", "/preflight"),
    *("/preview_data", "/prepare_data", "/describe_hub_data", "/download_hub_data"),
    *("/inspect_adapter", "/load_adapter", "/unload_adapter", "/save_adapter", "/set_active"),
    *("/delete_adapter", "/restore_adapter", "/rename_adapter", "/convert_adapter"),
    *("/combine", "/similarity", "/merge", "/prepare_hotswap", "/hotswap", "/end_hotswap"),
    *("/compare", "/score", "/next_token", "/chat", "/quantization_table", "/export_run"),
    "/push_adapter",
    *("/snapshot", "/runs", "/events", "/stop", "/pause", "/unpause", "/save_now", "/adjust"),
    *("/enqueue", "/unqueue", "/confirm_queued"),
}


def wait_until_idle(client: Client) -> dict:
    for _ in range(500):
        state = client.predict(api_name="/snapshot")
        if state["job"] is None:
            return state
        time.sleep(0.02)
    raise TimeoutError("The job does not end.")


def train(client: Client, name: str, **fields: object) -> str:
    answer = client.predict({"name": name, "epochs": 1, **fields}, api_name="/train")
    wait_until_idle(client)
    return answer["run_id"]


def test_only_the_documented_endpoints_are_public(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == PUBLIC


def test_each_endpoint_says_what_it_takes_and_gives(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for path, endpoint in named.items():
        assert endpoint["description"].endswith("."), path
    combine = named["/combine"]["description"]
    assert combine.startswith("Blend adapters into a new one.")
    for part in (*rq.Combine.model_fields, *rs.Blend.model_fields):
        assert part in combine
    assert named["/end_hotswap"]["parameters"] == []


def test_runs_lists_what_was_trained(client: Client) -> None:
    run_id = train(client, "listed")
    newest = client.predict(api_name="/runs")[0]
    assert (newest["id"], newest["name"], newest["state"]) == (run_id, "listed", "finished")


SCRIPTED = [
    ("rename-adapter", {"name": "there", "new_name": "b"}),
    ("end-hotswap", None),
    ("hotswap", {"adapter": "a"}),
    ("similarity", {"names": ["a", "b"]}),
    ("next-token", {"prompt": "a", "variants": [[]]}),
]


@pytest.mark.parametrize(("operation", "request_"), SCRIPTED)
def test_an_operation_is_handed_on_with_its_fields(
    client: Client, served: FakeService, operation: str, request_: dict | None
) -> None:
    heard = []

    def answer(request: rq.Request) -> errors.WorkbenchError:
        heard.append(request)
        return errors.Unsupported(f"{operation} was heard.")

    served.script[operation] = answer
    if "there" not in {adapter.name for adapter in served.library.all()}:
        served.add_adapter("there")
    arguments = [] if request_ is None else [request_]
    with pytest.raises(AppError, match=f"{operation} was heard"):
        client.predict(*arguments, api_name=f"/{operation.replace('-', '_')}")
    assert heard == [rq.BY_NAME[operation](**(request_ or {}))]
    del served.script[operation]


def test_a_base_can_be_let_go(client: Client) -> None:
    assert client.predict(api_name="/unload_model") == {"freed_bytes": 15_900_000}
    client.predict({"source": "starter"}, api_name="/load_model")


def test_a_program_can_load_check_train_and_chat(client: Client) -> None:
    assert client.predict({"source": "starter"}, api_name="/load_model")["name"] == "starter"
    check = client.predict({"train": {"name": "talker"}}, api_name="/preflight")
    assert check["ready"]
    run_id = train(client, "talker")
    kinds = [event["type"] for event in client.predict(run_id, api_name="/events")]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    active = client.predict({"adapters": [["talker", 1.0]]}, api_name="/set_active")
    assert active["adapters"] == [["talker", 1.0]]
    question = {"messages": [{"role": "user", "content": "hi you"}], "variant": [["talker", 1.0]]}
    answers = list(client.submit(question, api_name="/chat"))
    assert answers[-1].strip() == "Arr, hi you"
    assert len(answers) > 1
    score = client.predict({"texts": ["a b"], "variants": [[]]}, api_name="/score")
    assert score["tokens"] == [10]
    compared = client.predict({"prompts": ["a"], "variants": [[], []]}, api_name="/compare")
    assert compared["answers"] == [["A"], ["A"]]


def test_events_go_on_after_the_cursor(client: Client) -> None:
    run_id = train(client, "cursor")
    events = client.predict(run_id, api_name="/events")
    rest = client.predict(run_id, events[4]["seq"], api_name="/events")
    assert rest == events[5:]


@pytest.mark.parametrize(
    ("endpoint", "request_", "words"),
    [
        ("/train", {"name": "a", "adapter": {"rank": 0}}, "Rank"),
        ("/train", {"name": "a", "colour": "red"}, "colour is not a setting of Train"),
        ("/train", {"name": "<b>"}, "An adapter name has"),
        ("/set_active", {"adapters": [["nobody", 1.0]]}, "There is no adapter called 'nobody'"),
        ("/resume", {"run_id": "20200101-none"}, "There is no run"),
        ("/load_model", {"source": "/etc"}, "The page may not use /etc"),
        ("/train", {"name": "a", "data": "/etc/passwd"}, "The page may not use /etc/passwd"),
    ],
)
def test_errors_arrive_word_for_word(
    client: Client, endpoint: str, request_: dict, words: str
) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(request_, api_name=endpoint)


def test_a_second_job_is_told_what_runs(client: Client, served: FakeService) -> None:
    client.predict({"name": "long", "max_steps": 5000}, api_name="/train")
    with pytest.raises(AppError, match="Training long is still going on"):
        client.predict({"name": "other"}, api_name="/train")
    client.predict(api_name="/stop")
    state = wait_until_idle(client)
    assert state["runs"][0]["state"] == "stopped"
    run_id = state["runs"][0]["id"]
    assert client.predict({"run_id": run_id}, api_name="/resume")["run_id"] == run_id
    client.predict(api_name="/stop")
    wait_until_idle(client)


def test_no_answer_carries_a_path_that_clients_would_download(
    client: Client, tmp_path: Path, served: FakeService
) -> None:
    train(client, "copied")
    folder = served.settings.copies_dir / "copy"
    saved = client.predict({"name": "copied", "destination": str(folder)}, api_name="/save_adapter")
    assert saved["folder"] == str(folder)
    assert client.predict(api_name="/snapshot")["base"]["folder"] == FACTS.path


def test_a_foreign_host_name_is_refused(served: FakeService) -> None:
    assert httpx.get(served.url, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(served.url).status_code == 200


def test_files_of_the_workspace_are_not_served(served: FakeService) -> None:
    secret = served.settings.workspace / "session.json"
    secret.write_text("{}")
    assert httpx.get(f"{served.url}gradio_api/file={secret}").status_code == 403
    assert httpx.get(f"{served.url}gradio_api/file=/etc/passwd").status_code == 403


def test_a_form_from_another_site_cannot_start_anything(served: FakeService) -> None:
    for origin, status in (({"Origin": "https://evil.example"}, 403), ({}, 422)):
        answer = httpx.post(
            f"{served.url}gradio_api/call/train",
            content='{"data": [{"name": "evil"}]}',
            headers={"Content-Type": "text/plain", **origin},
        )
        assert answer.status_code == status


def test_a_file_can_be_uploaded_into_the_workspace(served: FakeService) -> None:
    answer = httpx.post(
        f"{served.url}gradio_api/upload", files={"files": ("rows.jsonl", b'{"text": "a"}\n')}
    )
    assert answer.status_code == 200
    assert answer.json()[0].startswith(str(served.settings.workspace))


def test_a_training_waits_its_turn_and_is_taken_out(client: Client, served: FakeService) -> None:
    client.predict({"name": "endless", "max_steps": 5000, "epochs": 1000}, api_name="/train")
    waiting = client.predict({"name": "patient", "max_steps": 1}, api_name="/enqueue")
    queue = client.predict(api_name="/snapshot")["queue"]
    assert [each["id"] for each in queue] == [waiting["id"]]
    assert client.predict(waiting["id"], api_name="/unqueue")["queue"] == []
    with pytest.raises(AppError, match="no longer waiting"):
        client.predict(waiting["id"], api_name="/unqueue")
    with pytest.raises(AppError, match="Rank must be at least 1"):
        client.predict({"name": "x", "adapter": {"rank": 0}}, api_name="/enqueue")
    client.predict(api_name="/stop")
    wait_until_idle(client)
