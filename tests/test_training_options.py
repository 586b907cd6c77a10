"""All options of `TrainingArguments`, and of `Trainer` itself: honoured, or refused at the start."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import LABELS
from explained_rows import ALL_OFF, make_dataset, make_rows, trained, weights
from transformers import TrainingArguments

from modeling_megl.training_megl import MeglDataCollator, MeglTrainer, MeglTrainingArguments


# What `Trainer` does by itself, whatever the model.
TRAINERS_OWN = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules max_grad_norm tf32 use_liger_kernel liger_kernel_config use_cache torch_empty_cache_steps
    auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay save_only_model
    save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint hub_token hub_private_repo
    hub_model_id hub_always_push hub_revision metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint seed data_seed use_cpu accelerator_config dataloader_pin_memory
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order length_column_name
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics
    do_train do_eval do_predict local_rank torch_compile_mode activation_checkpointing_kwargs
    gradient_checkpointing_kwargs
""".split()
# Values that train and evaluate as without them, which is the test's.
WITHOUT_EFFECT = {
    "remove_unused_columns": True,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,  # with a worker
    "per_device_eval_batch_size": 3,
    "eval_accumulation_steps": 1,
    "eval_do_concat_batches": False,
    "eval_on_start": True,
    "eval_use_gather_object": True,
    "include_for_metrics": ["inputs", "loss"],
    "full_determinism": True,
    "ddp_find_unused_parameters": False,
    "train_sampling_strategy": "sequential",
    "label_names": ["labels"],
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "torch_compile_backend": "aot_eager",
}
# Values that change the result, and the test that says how.
TESTED = {
    "label_smoothing_factor": "test_classification_loss_is_that_of_torch",
    "gradient_accumulation_steps": "test_accumulation_is_one_large_batch",
    "bf16": "test_half_precision_trains_and_evaluates",
    "bf16_full_eval": "test_half_precision_trains_and_evaluates",
    "neftune_noise_alpha": "test_options_that_change_the_training",
    "dataloader_drop_last": "test_options_that_change_the_training",
    "prediction_loss_only": "test_evaluation_by_batches_and_by_loss_alone",
    "batch_eval_metrics": "test_evaluation_by_batches_and_by_loss_alone",
    "load_best_model_at_end": "test_best_model_is_restored_at_the_end",
    "resume_from_checkpoint": "test_half_written_checkpoints_are_passed_over",
    "push_to_hub": "test_pushes_carry_the_code_and_no_pickle",
    "hub_strategy": "test_pushes_carry_the_code_and_no_pickle",
    "fsdp": "test_killed_and_resumed_by_two_processes_is_one_process_alone",
    "fsdp_config": "test_killed_and_resumed_by_two_processes_is_one_process_alone",
    "deepspeed": "test_killed_and_resumed_by_two_processes_is_one_process_alone",
    "torch_compile": "test_the_trainer_compiles_beside_adapters_and_frozen_layers",
}
# Values that cannot be honoured.
REFUSED = {
    "average_tokens_across_devices": False,
    "parallelism_config": "any",
}
# Refused where there is no accelerator.
NEEDS_A_GPU = ["fp16", "fp16_full_eval"]


def test_every_option_is_accounted_for():
    groups = [TRAINERS_OWN, WITHOUT_EFFECT, TESTED, REFUSED, NEEDS_A_GPU]
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted({field.name for field in dataclasses.fields(TrainingArguments)})


@pytest.mark.parametrize("name", REFUSED)
def test_option_that_cannot_be_honoured_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"`{name}` must be .* here, got {REFUSED[name]!r}: "):
        MeglTrainingArguments(output_dir=str(tmp_path), **{name: REFUSED[name]})


@pytest.fixture(scope="module")
def make(make_model, processor, tmp_path_factory):
    def make(train=None, evaluated=None, model=True, trainer=None, **settings):
        common = {
            "output_dir": str(tmp_path_factory.mktemp("run")),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "optim": "sgd",
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "train_sampling_strategy": "sequential",
        }
        return MeglTrainer(
            model=make_model("megl-vit-tiny") if model else None,
            args=MeglTrainingArguments(**{**common, **settings}),
            processing_class=processor,
            train_dataset=make_dataset(10) if train is None else train,
            eval_dataset=make_dataset(7) if evaluated is None else evaluated,
            **(trainer or {}),
        )

    return make


@pytest.fixture(scope="module")
def usual(make):
    """Weights and evaluation of a training without options."""
    return outcome(make())


def outcome(trainer):
    trainer.train()
    metrics = {name: value for name, value in trainer.evaluate().items() if "loss" in name}
    return weights(trainer.model), metrics


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_option_without_effect_on_the_result_has_none(make, usual, name):
    settings = {name: WITHOUT_EFFECT[name]}
    if name == "dataloader_persistent_workers":
        settings["dataloader_num_workers"] = 1
    found, metrics = outcome(make(**settings))
    for key, value in usual[0].items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(usual[1], rel=1e-5)


@pytest.mark.parametrize("settings", [{"neftune_noise_alpha": 50.0}, {"dataloader_drop_last": True, "max_steps": 3}])
def test_options_that_change_the_training(make, usual, settings):
    found, _ = outcome(make(**settings))
    assert any(not torch.allclose(found[key], value) for key, value in usual[0].items())


def test_last_batch_is_dropped(make):
    trainer = make(num_train_epochs=1, max_steps=-1, dataloader_drop_last=True)
    trainer.train()
    assert trainer.state.global_step == 2  # of 4, 4 and 2 pictures


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("given", [None, ["0.5", "2", "1"], "balanced"])
def test_classification_loss_is_that_of_torch(make, processor, smoothing, given):
    train = make_dataset(10)
    trainer = make(
        train=train, per_device_train_batch_size=10, max_steps=1, class_weights=given, **ALL_OFF,
        label_smoothing_factor=smoothing,
    )  # fmt: skip
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)))(list(train))
    trainer.model.train()
    logits = trainer.model(batch["pixel_values"], output_saliency=False).logits
    counts = torch.tensor([4.0, 3.0, 3.0])  # labels are 0, 1, 2, 0, …
    weight = {None: None, "balanced": 10 / (3 * counts)}.get(given if given != ["0.5", "2", "1"] else "", None)
    if given == ["0.5", "2", "1"]:
        weight = torch.tensor([0.5, 2.0, 1.0])
    expected = F.cross_entropy(logits, batch["labels"], weight=weight, label_smoothing=smoothing)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_weighted_classes_accumulate_to_one_large_batch(make):
    options = {"class_weights": ["0.5", "2", "1"], "label_smoothing_factor": 0.1, "max_steps": 1}
    whole = make(per_device_train_batch_size=8, **options)
    parts = make(per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    found = [outcome(trainer)[0] for trainer in (whole, parts)]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-6)


def test_the_number_of_items_in_a_step_is_its_number_of_images(make):
    """Whatever the classes weigh: what each loss is divided by is the Trainer's own."""
    trainer = make(class_weights=["0.25", "0.25", "0.25"], per_device_train_batch_size=3)
    loader = iter(trainer.get_train_dataloader())
    batches, number = trainer.get_batch_samples(loader, 2, trainer.args.device)
    assert len(batches) == 2 and number == 6 and type(number) is int
    batches, number = trainer.get_batch_samples(loader, 9, trainer.args.device)
    assert number == sum(len(batch["labels"]) for batch in batches)


def test_bad_class_weights_are_refused(make):
    for given, message in (
        (["0.5", "heavy"], "must be 'balanced' or numbers that are not negative, one for each class, got"),
        (["nan", "1", "1"], "must be 'balanced' or numbers"),
        (["0", "0", "0"], "must be 'balanced' or numbers"),
        (["1", "2"], "must be a number for each of 3 classes, got 2"),
    ):
        with pytest.raises(ValueError, match=f"`class_weights` {message}"):
            make(class_weights=given)


def test_classes_of_a_stream_are_not_counted(make):
    stream = make_dataset(10).to_iterable_dataset()
    message = "`class_weights='balanced'` counts the labels of a `datasets.Dataset`, got a IterableDataset"
    with pytest.raises(ValueError, match=message):
        make(train=stream, class_weights="balanced")
    make(train=stream, class_weights=["1", "2", "1"], train_sampling_strategy="random").train()


def test_loss_function_of_the_users_own(make):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append((labels.shape, num_items_in_batch, outputs.saliency.shape))
        return outputs.logits.square().sum() / num_items_in_batch

    trainer = make(trainer={"compute_loss_func": loss}, max_steps=1, gradient_accumulation_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert seen[0] == ((4,), 8, (4, 4, 4)) and len(seen) == 2
    changed = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("vision_model.") for name in changed)
    with pytest.raises(
        ValueError, match="`compute_loss_func` takes the place of the losses: leave out `class_weights`"
    ):
        make(trainer={"compute_loss_func": loss}, class_weights="balanced")


def test_model_may_be_made_by_the_trainer(make, make_model, usual):
    trainer = make(model=False, trainer={"model_init": lambda: make_model("megl-vit-tiny")})
    found, metrics = outcome(trainer)
    for key, value in usual[0].items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    again, _ = outcome(trainer)  # from the beginning, with statistics of its own
    assert all(torch.equal(again[key], value) for key, value in found.items())
    with pytest.raises(ValueError, match="`frozen_layer` computes its images once, .* leave out `model_init`"):
        make(model=False, frozen_layer="x", trainer={"model_init": lambda: make_model("megl-resnet-tiny")})


def test_other_arguments_are_refused(make_model, processor, tmp_path):
    with pytest.raises(ValueError, match="`args` must be `MeglTrainingArguments`, .* got `TrainingArguments`"):
        MeglTrainer(make_model("megl-vit-tiny"), TrainingArguments(str(tmp_path)), processing_class=processor)
    for name in ("lora_rank", "generation_max_new_tokens", "per_device_train_batch_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be 1 or more, got 0"):
            MeglTrainingArguments(output_dir=str(tmp_path), **{name: 0})


@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16_full_eval": True}])
def test_half_precision_trains_and_evaluates(make, usual, settings):
    _, metrics = outcome(make(predict_with_generate=True, generation_max_new_tokens=3, **settings))
    for name in ("eval_loss_classification", "eval_loss_visual", "eval_loss_text"):
        assert metrics[name] == pytest.approx(usual[1][name], rel=0.05, abs=0.02), name


def test_the_fused_optimizer_is_the_same_optimizer(make):
    """Also for what is trained beside the model, and at a learning rate of its own."""
    options = {"max_steps": 3, "visual_loss": "res_l", "text_learning_rate": 3e-2, "adam_epsilon": 1e-4}
    found = []
    for optim in ("adamw_torch", "adamw_torch_fused"):
        trainer = make(optim=optim, **options)
        trainer.train()
        assert all(group["fused"] is (True if "fused" in optim else None) for group in trainer.optimizer.param_groups)
        found.append(trained(trainer))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_evaluation_by_batches_and_by_loss_alone(make, usual):
    def accuracy(prediction, compute_result=True):
        hits.append(prediction.predictions[0].argmax(-1) == prediction.label_ids[0])
        return {"accuracy": torch.cat([torch.as_tensor(part) for part in hits]).float().mean().item()}

    found = []
    for settings in ({"batch_eval_metrics": True}, {}):
        hits = []
        found.append(make(trainer={"compute_metrics": accuracy}, **settings).evaluate()["eval_accuracy"])
    assert found[0] == pytest.approx(found[1])
    trainer = make(prediction_loss_only=True)
    _, metrics = outcome(trainer)
    assert metrics == pytest.approx(usual[1], rel=1e-5)
    assert trainer.predict(make_dataset(3)).predictions is None


def test_several_evaluation_sets(make):
    several = {"first": make_dataset(4), "second": make_dataset(3, masks="none")}
    metrics = make(evaluated=several).evaluate()
    assert not math.isnan(metrics["eval_first_loss_visual"]) and "eval_second_loss_visual" not in metrics
    with pytest.raises(ValueError, match="The data set's classes are not the model's"):
        make(evaluated={"first": make_dataset(3, names=sorted(LABELS))})


def test_masks_without_flags_are_masks_of_all(make):
    """A collator of the user's that says nothing else of its masks."""
    rows = make_dataset(10, masks="all")

    expected, found = make(train=rows, evaluated=rows), make(train=rows, evaluated=rows)
    own = replace(found.data_collator, epoch=0)

    def collate(rows):
        batch = own(rows)
        del batch["has_visual_explanation"]
        return batch

    found.data_collator = collate
    logs = []
    for trainer in (expected, found):
        trainer.train()
        logs.append({name: value for name, value in trainer.state.log_history[0].items() if "loss" in name})
    assert logs[0] == pytest.approx(logs[1]) and logs[0]["loss_visual"] > 0


def test_a_smaller_batch_begins_anew(make):
    trainer = make(auto_find_batch_size=True, per_device_train_batch_size=8, distribution_loss_weight=0.1)
    step, sizes = trainer.training_step, []

    def limited(model, inputs, num_items_in_batch=None):
        sizes.append(len(inputs["labels"]))
        if sizes[-1] > 5:
            raise RuntimeError("CUDA out of memory.")
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = limited
    trainer.train()
    expected = make(per_device_train_batch_size=sizes[-1], distribution_loss_weight=0.1)
    expected.train()
    assert trainer.statistic.weight == expected.statistic.weight
    for name in ("loss_classification", "loss_text", "loss_visual"):
        assert trainer.state.log_history[0][name] == pytest.approx(expected.state.log_history[0][name], rel=1e-5)


def test_options_that_do_not_go_together_are_refused(make, processor):
    for settings, message in (
        ({"fp16": True}, "`fp16` needs an accelerator, which there is none of: use `bf16`"),
        ({"fp16_full_eval": True}, "`fp16` needs an accelerator"),
        ({"train_sampling_strategy": "group_by_length"}, "='group_by_length'` needs lengths in a column 'length'"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be 1 or more, got 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**settings)
    with pytest.raises(ValueError, match="`frozen_layer` computes all images .* it takes no stream"):
        make(train=make_dataset(4).to_iterable_dataset(), frozen_layer="vit.layers.0")
    with pytest.raises(ValueError, match="the model's `MeglProcessor` as `processing_class` .* got TokenizersBackend"):
        MeglTrainer(make().model, MeglTrainingArguments(), processing_class=processor.tokenizer)


def test_lengths_of_a_column_group_the_pictures(make):
    train = make_dataset(10).add_column("length", list(range(10)))
    trainer = make(train=train, train_sampling_strategy="group_by_length")
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_bad_picture_names_its_items(make):
    rows = make_rows(4)
    rows[2]["image"] = "picture.png"
    with pytest.raises(
        ValueError, match=r"A batch of the items 0, 1, 2, 3: `images\[2\]` must be a `PIL.Image.Image`"
    ):
        MeglDataCollator(make().processing_class, dict(enumerate(LABELS)))(rows)
