"""Multi-label models: losses and maps of several classes of a picture, by hand."""

import math

import pytest
import torch

from megl.evaluation.classifier import load_classifier
from megl.exporting import make_program
from modeling_megl import MeglForImageClassification
from modeling_megl.losses_megl import gradia, multi_label_loss, positive_classes, visual_losses


MULTI_LABEL = {"problem_type": "multi_label_classification"}


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_classification_loss_is_the_mean_over_classes_of_binary_cross_entropy():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # The probabilities are 1/2 and 1/2, 3/4 and 1/4.
    expected = [math.log(2), (math.log(4 / 3) + math.log(4)) / 2]
    torch.testing.assert_close(multi_label_loss(logits, labels), torch.tensor(expected))


def test_the_classes_of_each_picture_ascend_and_are_filled_up():
    labels = torch.tensor([[0.0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]])
    assert positive_classes(labels).tolist() == [[1, 3], [-1, -1], [2, -1]]
    assert positive_classes(labels[1:2]).tolist() == [[-1]]


def test_several_masks_of_a_picture_count_each_for_itself():
    maps = torch.tensor([[[[1.0, 0]], [[0, 1]]]])
    masks = torch.tensor([[[[1.0, 1]], [[1, 0]]]])
    found = visual_losses("gradia", maps, masks, torch.tensor([[True, True]]))
    assert found.tolist() == [[0.5, 1.0]]
    assert visual_losses("gradia", maps, masks, torch.tensor([[True, False]])).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("preset", ["megl-resnet-tiny", "megl-vit-tiny"])
@pytest.mark.parametrize("method", ["grad_cam", "input_x_gradient"])
def test_maps_of_several_classes_are_those_of_one_after_the_other(make_model, pictures, preset, method):
    model = make_model(preset, saliency_method=method)
    target = torch.tensor([[2, 0], [1, -1]])
    several = model(pictures, target=target)
    assert several.saliency.shape == (2, 2, 4, 4)
    for place in (0, 1):
        one = model(pictures, target=target[:, place])
        torch.testing.assert_close(several.saliency[:, place], one.saliency)
        if place == 0:  # which the rationale is of
            torch.testing.assert_close(several.evidence_tokens, one.evidence_tokens)
    with torch.no_grad():
        torch.testing.assert_close(model(pictures, target=target).saliency, several.saliency)
        torch.testing.assert_close(model(pictures).saliency[1], several.saliency[1, 1])

    several.saliency.square().sum().backward()
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    for place in (0, 1):
        model(pictures, target=target[:, place]).saliency.square().sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_a_training_step_guides_the_map_of_each_class_that_a_picture_shows(make_model, pictures):
    model = make_model("megl-resnet-tiny", **MULTI_LABEL).train()
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    masks = (torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    annotated = torch.tensor([[True, True], [True, False]])
    output = model(pictures, labels=labels, visual_explanations=masks, has_visual_explanation=annotated)
    assert output.saliency.shape == (2, 2, 4, 4)
    torch.testing.assert_close(output.loss_classification, multi_label_loss(output.logits, labels).mean())
    target = torch.tensor([[0, 2], [1, -1]])
    assert torch.equal(output.saliency, model(pictures, target=target).saliency)
    parts = [gradia(output.saliency[:, place], masks[:, place], annotated[:, place]) for place in (0, 1)]
    torch.testing.assert_close(output.loss_visual, sum(parts).sum() / 3)
    torch.testing.assert_close(output.loss, output.loss_classification + output.loss_visual)
    # Divided by the numbers of the whole batch where this is a part of it.
    whole = model(
        pictures,
        labels=labels,
        visual_explanations=masks,
        has_visual_explanation=annotated,
        num_items_in_batch={"images": 8, "visual_explanations": 12},
    )
    torch.testing.assert_close(whole.loss_classification, output.loss_classification / 4)
    torch.testing.assert_close(whole.loss_visual, output.loss_visual / 4)


def test_each_class_has_a_probability_of_its_own(make_model):
    model = make_model("megl-resnet-tiny", score_temperature=2.0, **MULTI_LABEL)
    logits = torch.tensor([[0.0, 2 * math.log(3), -2 * math.log(3)]])
    torch.testing.assert_close(model.probabilities(logits), torch.tensor([[0.5, 0.75, 0.25]]))


def test_what_fits_no_multi_label_model_is_refused(make_model, make_config, pictures):
    model = make_model("megl-resnet-tiny", **MULTI_LABEL)
    with pytest.raises(ValueError, match=r"`labels` of a multi-label model must be 1 or 0 .* got the shape \(2,\)"):
        model(pictures, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`visual_explanations` must have a mask for each map, .* as `target`"):
        model(pictures, labels=torch.zeros(2, 3), visual_explanations=torch.zeros(2, 2, 32, 32))
    with pytest.raises(ValueError, match="`problem_type` must be .*, got 'regression': a map explains a class"):
        make_config("megl-resnet-tiny", problem_type="regression")


def test_what_takes_one_label_a_picture_refuses_a_multi_label_model(make_model, processor, tmp_path):
    model = make_model("megl-resnet-tiny", **MULTI_LABEL)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a multi-label model, which cannot be audited"):
        load_classifier(str(tmp_path))
    with pytest.raises(ValueError, match="A multi-label model cannot be exported"):
        make_program(model, (32, 32))


def test_the_problem_type_is_saved(make_model, pictures, tmp_path):
    model = make_model("megl-resnet-tiny", **MULTI_LABEL)
    model.save_pretrained(tmp_path)
    reloaded = MeglForImageClassification.from_pretrained(tmp_path).eval()
    assert reloaded.config.problem_type == "multi_label_classification"
    assert torch.equal(reloaded(pictures).saliency, model(pictures).saliency)
