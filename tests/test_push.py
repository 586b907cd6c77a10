"""`megl push`: what is uploaded, what stays, and who may see it."""

import json

import pytest
import torch
from hub_stand_in import StandIn, serving
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForImageClassification

import dataset_builders.hub
from megl.publishing import model_files
from modeling_megl import MeglForImageClassification


CARD = "---\ntags: [megl]  # mine\n---\n\n# Birds\n"


@pytest.fixture()
def trained(make_model, processor, tmp_path):
    """A folder of a trained model with all that a training may leave in it."""
    folder = tmp_path / "trained"
    make_model("megl-resnet-tiny").save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "training_curves.svg").write_text("<svg/>")
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "notes.txt", "secret.py", ".env"):
        (folder / name).write_text("stays")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"stays")
    return folder


@pytest.fixture()
def hub(monkeypatch):
    stand_in = StandIn()
    with serving(stand_in) as address:
        monkeypatch.setattr(dataset_builders.hub, "HfApi", lambda: HfApi(endpoint=address, token="hf_secret"))
        monkeypatch.setattr(dataset_builders.hub, "get_token", lambda: "hf_secret")
        yield stand_in


def test_what_a_repository_needs_is_uploaded_and_works(run, trained, hub, tmp_path, capsys):
    run("push", trained, "me/birds", "--license", "mit", "--dataset_id", "me/pictures")
    assert capsys.readouterr().out.rstrip().endswith("/me/birds")
    (name, repository), *others = hub.repositories.items()
    assert (name, repository["private"], others) == ("me/birds", True, [])
    assert hub.tokens == {"Bearer hf_secret"}
    files = repository["files"]
    stays = {"optimizer.pt", "training_args.bin", "trainer_state.json", "notes.txt", "secret.py", ".env"}
    assert not [path for path in files if path in stays or path.startswith("checkpoint")]
    assert {"config.json", "model.safetensors", "modeling_megl.py", "tap_megl.py", "processor_config.json"} <= set(
        files
    )
    assert files["training_curves.svg"] == b"<svg/>"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.datasets, card.data.tags) == ("mit", ["me/pictures"], ["megl"])
    assert (trained / "README.md").read_text() == CARD  # the folder stays as it is
    copy = tmp_path / "copy"
    copy.mkdir()
    for path, content in files.items():
        (copy / path).write_bytes(content)
    image = torch.rand(1, 3, 32, 32)
    model = AutoModelForImageClassification.from_pretrained(copy, trust_remote_code=True).eval()
    expected = MeglForImageClassification.from_pretrained(trained).eval()
    torch.testing.assert_close(model(image).logits, expected(image).logits)


def test_a_dry_run_lists_the_files_and_needs_no_hub(run, trained, monkeypatch, capsys):
    monkeypatch.setattr(dataset_builders.hub, "HfApi", None)
    run("push", trained, "me/birds", "--dry_run")
    listed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(model_files(trained)) and "model.safetensors" in listed


def test_what_the_model_no_longer_has_is_removed_and_other_files_stay(run, trained, hub):
    kept = {"photo.png": b"kept", "app.py": b"kept", "examples/train.py": b"kept", "vocab.txt": b"kept"}
    old = {"model-00001-of-00002.safetensors": b"", "language_model/adapter_config.json": b"", **kept}
    hub.repositories["me/birds"] = {"private": True, "files": dict(old)}
    run("push", trained, "me/birds")
    files = hub.repositories["me/birds"]["files"]
    assert kept.items() <= files.items()
    assert not {"model-00001-of-00002.safetensors", "language_model/adapter_config.json"} & set(files)
    assert files["README.md"].decode() == CARD


def test_nothing_is_public_unless_asked_for(run, trained, hub):
    hub.repositories["me/open"] = {"private": False, "files": {}}
    with pytest.raises(SystemExit, match="push: expected me/open to be new or private, got a public model"):
        run("push", trained, "me/open")
    assert not hub.repositories["me/open"]["files"]
    run("push", trained, "me/open", "--public")
    run("push", trained, "me/seen", "--public")
    assert "config.json" in hub.repositories["me/open"]["files"] and not hub.repositories["me/seen"]["private"]
    with pytest.raises(SystemExit, match="push: expected me/seen to be new or private, got a public model"):
        run("push", trained, "seen")  # which is me/seen
    with pytest.raises(SystemExit, match="push: expected me/seen to be new or private, got a public model"):
        run("push", trained, "me/seen", "--public", "--no_public")


def test_a_private_repository_stays_so_and_that_is_said(run, trained, hub, capsys):
    hub.repositories["me/closed"] = {"private": True, "files": {}}
    run("push", trained, "me/closed", "--public")
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == (
        "me/closed stays private, as it was, with all that it holds: `hf repos settings me/closed --type model "
        "--public` opens it."
    )
    assert hub.repositories["me/closed"]["private"] and "config.json" in hub.repositories["me/closed"]["files"]
    run("push", trained, "me/closed")
    assert "stays private" not in capsys.readouterr().out


def test_what_is_no_whole_model_is_refused_before_anything_is_sent(run, trained, hub, tmp_path):
    def refused(message):
        with pytest.raises(SystemExit, match=message):
            run("push", trained, "me/birds")
        assert not hub.repositories

    with pytest.raises(SystemExit, match="nowhere is no folder: `megl train` writes one"):
        run("push", tmp_path / "nowhere", "me/birds")
    (trained / "README.md").rename(tmp_path / "card")
    refused("has no README.md; `megl evaluate --update_card` writes one, with the model's figures")
    (tmp_path / "card").rename(trained / "README.md")
    (trained / "tap_megl.py").rename(tmp_path / "tap_megl.py")
    refused("it has no tap_megl.py")
    (trained / "tap_megl.py").symlink_to(tmp_path / "tap_megl.py")
    refused("tap_megl.py lies outside of .*, or is a link to what does")
    (trained / "tap_megl.py").unlink()
    (tmp_path / "tap_megl.py").rename(trained / "tap_megl.py")
    (trained / "model.safetensors").rename(trained / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (trained / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("it has no model-00002-of-00002.safetensors")
    index["weight_map"] = {"a": ".env"}
    (trained / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("must name files such as model-00001-of-00002.safetensors, got '.env'")
    (trained / "model.safetensors.index.json").unlink()
    (trained / "model-00001-of-00002.safetensors").rename(trained / "model.safetensors")
    (trained / "README.md").write_text("---\na: [\n---\n")
    refused("README.md is no card with metadata: ")
    (trained / "README.md").write_text(CARD)
    config = json.loads((trained / "config.json").read_text())
    for auto_map, message in (
        ({"AutoModel": "../outside.Model"}, "outside of|it has no"),
        ({"AutoModel": "elsewhere.Model"}, "it has no elsewhere.py"),
        ("text", "The settings of .* are not as they should be"),
    ):
        (trained / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
        refused(message)
    with pytest.raises(SystemExit, match="push: Repo id must"):
        run("push", trained, "a/b/c", "--dry_run")
    (trained / "config.json").write_text('{"model_type": "resnet"}')
    refused("holds no MEGL model: its `model_type` is 'resnet'")


def test_a_missing_token_is_said(run, trained, hub, monkeypatch):
    monkeypatch.setattr(dataset_builders.hub, "get_token", lambda: None)
    with pytest.raises(SystemExit, match="push: expected a token of the Hub, to push to me/birds, got none"):
        run("push", trained, "me/birds")


def test_adapters_go_along_with_the_model_that_has_them(trained):
    folder = trained / "language_model"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        (folder / name).write_text("")
    assert not [name for name in model_files(trained) if name.startswith("language_model")]
    config = json.loads((trained / "config.json").read_text())
    with pytest.raises(
        ValueError, match="holds adapters of a language model that others cannot fetch, .*trained: name"
    ):
        (trained / "config.json").write_text(
            json.dumps({**config, "text_adapter": True, "text_base_model": str(trained)})
        )
        model_files(trained)
    (trained / "config.json").write_text(json.dumps({**config, "text_adapter": True, "text_base_model": "me/lm"}))
    assert [name for name in model_files(trained) if name.startswith("language_model/")] == [
        *("language_model/adapter_config.json", "language_model/adapter_model.safetensors")
    ]
