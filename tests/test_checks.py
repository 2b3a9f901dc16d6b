"""What `rsft check` finds without a cluster: every fault with its key, all at once, and what a run will ask for."""

import json
import subprocess
import sys
import time

import pytest
from factories import write_jsonl
from projects import NUM_HELD_OUT, NUM_PROMPTS, sums, write_fake_model, write_project

from rsft_cluster.checks.check import PEEK, check, check_plugins
from rsft_cluster.config.file import load_config
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.policies.files import ModelFiles, check_template


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a config and a model, where the user stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_project(tmp_path)
    write_fake_model(tmp_path / "model")
    return tmp_path


def checked(folder, *overrides):
    return check(load_config(folder / "run.yaml", overrides))


def says(folder, about, *overrides):
    return [f.says for f in checked(folder, *overrides) if f.about == about]


def refusal(folder, *overrides):
    with pytest.raises(ConfigError) as caught:
        checked(folder, *overrides)
    return str(caught.value)


def test_a_good_config_is_described(project):
    found = {f.about: f.says for f in checked(project)}
    assert found["policy"] == "4 parameters, 16 bytes of weights, context of 128 tokens"
    assert found["prompts"].startswith(f"{NUM_PROMPTS} in all, raw text, 4 tokens on average")
    assert found["evaluation.prompts"].startswith(f"{NUM_HELD_OUT} in all")
    assert found["a round"].startswith("4 candidates a prompt, at most 64 tokens each prompt; an evaluation adds 9")
    assert found["cluster"] == "must offer 3 CPUs and 0 GPUs"
    assert found["acceptance"] == "targets the sampled distribution, restricted to candidates that passed"
    assert not any(f.warns for f in checked(project))


def test_what_the_cluster_must_offer_follows_the_widest_stage(project):
    wide = ("sampling.workers=8", "sampling.num_gpus=1", "training.workers=4", "training.num_gpus=2")
    assert says(project, "cluster", *wide) == ["must offer 10 CPUs and 8 GPUs"]
    wide += ("scoring.workers=2", "scoring.num_gpus=0.5")
    assert says(project, "cluster", *wide) == ["must offer 11 CPUs and 9 GPUs"]
    assert says(project, "cluster", *wide, "sampling.workers={min: 2, max: 64}") == ["must offer 5 CPUs and 8 GPUs"]
    assert says(project, "cluster", "scoring.num_gpus=1") == ["must offer 3 CPUs and 1 GPUs"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampling.generator=scriptd", "sampling.generator: no generator is called 'scriptd'; did you mean 'scripted'"),
        ("sampling.generator={use: scripted, params: {acuracy: 1}}", "sampling.generator: scripted: got an unexpected"),
        ("sampling.generator={use: scripted, params: {accuracy: x}}", "parameter accuracy is 'x', expected float"),
        ("sampling.generator={use: scripted, params: {accuracy: 7}}", "accuracy"),
        ("sampling.generator={use: scripted, params: {answers: no.jsonl}}", "answers no.jsonl cannot be read"),
        ("sampling.max_tokens=128", "sampling.max_tokens: 128 leaves no room for a prompt in the model's context of"),
        ("sampling.max_tokens=125", "evaluation.prompts: all 6 prompts leave no room for sampling.max_tokens = 125"),
        ("scoring.constraints.1=lenght", "scoring.constraints.1: no constraint is called 'lenght'; did you mean 'len"),
        ("scoring.constraints.1=nosuch.module:f", "scoring.constraints.1: nosuch.module:f: there is no module 'nos"),
        ("scoring.constraints.1=json:nothing", "scoring.constraints.1: json:nothing: module json has no 'nothing'"),
        ("scoring.constraints.1=json:decoder", "is a module, not something that can be called"),
        ("acceptance.rule=best_of", "acceptance.rule: no acceptance rule is called 'best_of'; did you mean 'best_of_"),
        ("acceptance.rule=json:dumps", "acceptance.rule: json:dumps: declares no target"),
        ("promotion.rule=foo", "promotion.rule: no promotion rule is called 'foo'. Known: always, paired_bootstrap"),
        ("promotion.rule.use=json:dumps", "promotion.rule: json:dumps"),
        ("promotion.rule={use: paired_bootstrap, params: {metric: foo}}", "promotion.rule: "),
        ("promotion.rule={use: paired_bootstrap, params: {confidence: 95}}", "promotion.rule: "),
        ("prompts.source=foo", "prompts: no prompt source is called 'foo'. Known: files"),
        ("prompts.paths=[no.jsonl]", "prompts.paths: "),
        ("prompts.paths=[run.yaml]", "gives no file that can be read"),
        ("prompts.columns.prompt=question", "prompts.jsonl:1: neither 'messages' nor 'question' is there; the line"),
        ("prompts.columns.reference=null", "scoring.constraints.1: answer_matches cannot judge an answer to "),
        ("evaluation.prompts.paths=[no.jsonl]", "evaluation.prompts.paths: "),
        ("evaluation.prompts.paths=[]", "evaluation.prompts.paths is empty; name at least one"),
        ("evaluation.prompts.paths=[prompts.jsonl]", "this held-out prompt also stands among the training prompts"),
        ("policy.model=./no-model", "no-model: there is no such folder, or it is empty"),
        ("policy.model=no-model", "policy.model: 'no-model' is no folder here, and the hub could not be asked"),
        ("policy.chat_template=no.jinja", "no.jinja: there is no such file"),
        ("policy.attention=flash_attention_2", "policy.attention: flash_attention_2 runs on GPUs alone, and sampling."),
        ("training.replay=no.jsonl", "training.replay: "),
        ("store=ftp://host/x", "store: ftp://host/x/sums: unknown storage scheme 'ftp'"),
        ("store=s3://", "store: s3://: names no place; expected something like s3://bucket"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_key(project, override, said):
    message = refusal(project, override)
    assert said in message
    assert "Traceback" not in message


def test_all_faults_are_told_at_once(project):
    message = refusal(project, "promotion.rule=x", "acceptance.rule=y", "prompts.paths=[z.jsonl]", "policy.model=./w")
    for key in ("promotion.rule: ", "acceptance.rule: ", "prompts.paths: ", "policy.model: "):
        assert f"\n{key}" in f"\n{message}"


def test_chat_prompts_need_a_chat_template(project):
    chat = ("prompts={paths: [chat.jsonl]}", "scoring.constraints=[finished]")
    assert "prompts: these are chat prompts, and the tokenizer of" in refusal(project, *chat)
    assert "Set policy.chat_template to a Jinja file" in refusal(project, *chat)
    (project / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert says(project, "prompts", *chat, "policy.chat_template=own.jinja")[0].startswith("1 in all, chat, ")
    (project / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert says(project, "prompts", *chat)[0].startswith("1 in all, chat, ")


def test_a_store_that_cannot_be_written_to_ends_with_its_own_code(project):
    with pytest.raises(StoreError, match=r"^store: .*run\.yaml/x: cannot be written to \(Not a directory\); expected"):
        checked(project, "store=run.yaml/x")


def test_a_check_makes_no_folder_for_the_run(project):
    checked(project)
    assert not (project / "runs" / "sums").exists()
    assert list((project / "runs").iterdir()) == []


def test_the_allowed_share_of_bad_lines_is_one_of_the_whole_source(project):
    good = sums(PEEK + 5, first=100)
    write_jsonl(project / "prompts.jsonl", [*[{"no": "prompt"}] * 20, *good])
    found = [f for f in checked(project) if f.warns]
    assert [f.says for f in found] == ["20 unusable lines among the first ones, to be set aside"]
    write_jsonl(project / "prompts.jsonl", [*[{"no": "prompt"}] * 101, *good])
    assert "max_bad_rate allows 1 %" in refusal(project)


def test_some_prompts_that_do_not_fit_are_a_warning(project):
    rows = [*sums(NUM_PROMPTS), {"prompt": "word " * 120, "answer": "1"}]
    write_jsonl(project / "prompts.jsonl", rows)
    (warning,) = [f for f in checked(project) if f.warns]
    assert warning.about == "prompts"
    assert warning.says.startswith("1 of the first 15 leave no room for sampling.max_tokens = 16")


def test_a_constraint_of_the_users_that_fails_is_a_warning(project, monkeypatch):
    (project / "checks_user_rules.py").write_text("def broken(candidate):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(str(project))
    warnings = [f for f in checked(project, "scoring.constraints.1=checks_user_rules:broken") if f.warns]
    assert [w.about for w in warnings] == ["scoring.constraints.1"] * 2
    assert "broken cannot judge an answer to " in warnings[0].says
    assert warnings[0].says.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    "constraint",
    [
        {"use": "checks_user_loops:for_ever", "timeout_s": 1},
        {"use": "any_of", "timeout_s": 1, "params": {"constraints": [{"use": "checks_user_loops:for_ever"}]}},
    ],
)
def test_a_constraint_of_the_users_that_hangs_does_not_hang_the_check(project, monkeypatch, constraint):
    source = ["def for_ever(candidate):", "    while True:", "        pass", ""]
    (project / "checks_user_loops.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(str(project))
    start = time.monotonic()
    warnings = [f for f in checked(project, f"scoring.constraints.1={json.dumps(constraint)}") if f.warns]
    assert time.monotonic() - start < 20
    assert all("took over 1 s and was killed" in w.says for w in warnings)
    assert len(warnings) == 2


def test_a_class_of_the_users_is_built_and_not_called(project, monkeypatch):
    (project / "checks_user_models.py").write_text(
        "class Heavy:\n    def judge(self, candidates):\n        raise SystemExit('loaded')\n"
    )
    monkeypatch.syspath_prepend(str(project))
    assert not [f for f in checked(project, "scoring.constraints.1=checks_user_models:Heavy") if f.warns]


def test_code_that_comes_with_a_model_is_a_warning(project):
    (project / "model" / "config.json").write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "m.M"}}))
    (warning,) = [f for f in checked(project) if f.warns]
    assert "give --trust-remote-code" in warning.says


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"garbage", "model.safetensors: cannot be read: "),
        ("config.json", b"{", "config.json: cannot be read: "),
        ("config.json", b"[]", "config.json: cannot be read: expected a JSON object"),
        ("tokenizer.json", b"{}", "tokenizer.json: cannot be read: "),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json: cannot be read: "),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "lost.safetensors"}}', "names lost.safetensors"),
    ],
)
def test_a_damaged_model_file_is_named(project, name, content, said):
    (project / "model" / name).write_bytes(content)
    message = refusal(project, "prompts={paths: [chat.jsonl]}")
    assert said in message
    assert "policy.model: " in message or "prompts: " in message


@pytest.mark.parametrize(
    ("name", "said"),
    [("config.json", "holds no config.json"), ("model.safetensors", "holds no *.safetensors; pickled weights are not"),
     ("tokenizer.json", "holds no tokenizer (tokenizer.json, tokenizer.model")],
)  # fmt: skip
def test_a_missing_model_file_is_named(project, name, said):
    (project / "model" / name).unlink()
    message = refusal(project)
    assert message.startswith("policy.model: ")
    assert said in message


def test_a_template_that_is_no_template_is_told_with_its_line(tmp_path):
    path = tmp_path / "bad.jinja"
    path.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ConfigError, match=r"bad\.jinja:2: not a Jinja template"):
        check_template(path)
    path.write_text("{% generation %}{{ x }}{% break %}")
    check_template(path)


def test_a_model_on_shared_storage_or_the_hub_is_left_for_the_run(project, monkeypatch):
    assert ModelFiles(project / "model").has_chat_template is False
    assert "hub" in says(project, "policy", "policy.model=org/model", "policy.revision=abc")[0]


def test_plug_ins_alone_can_be_checked_without_the_files(project):
    config = load_config(project / "run.yaml", ["prompts.paths=[/cluster/only.jsonl]", "policy.model=/cluster/model"])
    check_plugins(config)
    with pytest.raises(ConfigError, match=r"acceptance\.rule: "):
        check_plugins(load_config(project / "run.yaml", ["acceptance.rule=x"]))


def test_no_engine_is_imported(project):
    code = (
        "import sys; from rsft_cluster.checks.check import check; from rsft_cluster.config.file import load_config\n"
        "check(load_config('run.yaml'))\n"
        "print([m for m in ('ray', 'torch', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project)
    assert out.stdout == "[]\n"
