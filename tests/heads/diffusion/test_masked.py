"""Masked attention: which tokens attend to which captions."""

import pytest
import torch

from visattn.heads.diffusion.masked import box_masks, masked_attention
from visattn.heads.diffusion.roictrl import Instances, apply, remove

LEFT, RIGHT, ALL = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]


@pytest.fixture
def unet(make_unet):
    """A UNet whose text has 32 channels."""
    return make_unet()


SAMPLE, TEXT = torch.randn(2, 4, 8, 12), torch.randn(2, 7, 32)


def instances(*images, text=None):
    """Instances with these boxes in each image, and this caption or random ones."""
    return Instances.from_lists(
        [
            (
                boxes,
                torch.randn(len(boxes), 7, 32) if text is None else text.expand(len(boxes), 7, 32),
            )
            for boxes in images
        ],
        dim=32,
        length=7,
    )


@torch.no_grad()
def call(unet, given, **options):
    with masked_attention(unet, given, **options):
        return unet(SAMPLE, 9, encoder_hidden_states=TEXT).sample


@torch.no_grad()
def plain(unet, text=TEXT):
    return unet(SAMPLE, 9, encoder_hidden_states=text).sample


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([0.0, 0.0, 1.0, 1.0], range(4), range(8)),
        ([0.25, 0.5, 0.5, 1.0], range(2, 4), range(2, 4)),
        # A token is in with its centre: 0.3 to 0.8 of 8 has those at 2.5 to 5.5, 0.3125 to 0.6875.
        ([0.3, 0.0, 0.8, 0.3], range(1), range(2, 6)),
        # Smaller than a token is the token that has its middle.
        ([0.51, 0.51, 0.52, 0.52], range(2, 3), range(4, 5)),
    ],
)
def test_masks_are_of_centres_in_boxes(box, rows, columns):
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[rows.start : rows.stop, columns.start : columns.stop] = True
    assert torch.equal(box_masks(torch.tensor([box]), (4, 8)).view(4, 8), expected)


def test_without_instances_nothing_changes(unet):
    for given in (None, instances([], [])):
        torch.testing.assert_close(call(unet, given), plain(unet), atol=0, rtol=0)


def test_an_instance_everywhere_is_another_prompt(unet):
    caption = torch.randn(7, 32)
    out = call(unet, instances([ALL], [ALL], text=caption))
    torch.testing.assert_close(out, plain(unet, caption.expand(2, 7, 32)))
    # Of three instances that are alike, and with the prompt among them as well.
    thrice = instances([ALL, ALL], [ALL, LEFT, RIGHT], text=caption)
    torch.testing.assert_close(call(unet, thrice), out)
    same = instances([LEFT, RIGHT], [ALL], text=TEXT[0])
    torch.testing.assert_close(call(unet, same, global_weight=0.7)[0], plain(unet)[0])


@torch.no_grad()
def test_blends_what_attention_gives_by_the_boxes(unet):
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    seen, given = [], instances([LEFT, ALL], [])
    with masked_attention(unet, given, 0.5):
        hook = attention.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        unet(SAMPLE, 9, encoder_hidden_states=TEXT)
        hook.remove()
    (_, own), (tokens, blended) = seen
    prompt = attention(tokens, encoder_hidden_states=TEXT)
    left = (torch.arange(96) % 12 < 6)[:, None]
    in_both, in_one = (0.5 * prompt[0] + own.sum(0)) / 2.5, (0.5 * prompt[0] + own[1]) / 1.5
    torch.testing.assert_close(blended[0], torch.where(left, in_both, in_one))
    torch.testing.assert_close(blended[1], prompt[1])


def test_leaving_restores_the_unet(unet):
    before = plain(unet)
    with pytest.raises(KeyboardInterrupt), masked_attention(unet, instances([ALL], [])):
        raise KeyboardInterrupt
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    torch.testing.assert_close(plain(unet), before, atol=0, rtol=0)


def test_calls_may_be_left_out(unet):
    answers = iter([True, False])
    with masked_attention(unet, instances([ALL], [ALL]), when=lambda: next(answers)):
        assert not torch.equal(plain(unet), plain(unet))


def test_ip_adapters_see_the_images_of_their_instances(unet):
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    processors = {
        name: IPAdapterAttnProcessor2_0(p_dim, 32, num_tokens=(4,)) if "attn2" in name else old
        for name, old in unet.attn_processors.items()
        for p_dim in [64 if "mid_block" in name else 32]
    }
    unet.set_attn_processor(processors)
    caption, images = torch.randn(7, 32), torch.randn(2, 1, 4, 32)
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    tokens = torch.randn(2, 96, 32)

    def attend(text):
        with torch.no_grad():
            return attention(tokens, encoder_hidden_states=(text, [images]))

    expected = attend(caption.expand(2, 7, 32))
    with masked_attention(unet, instances([ALL], [ALL], text=caption)) as model:
        for hook in model._forward_pre_hooks.values():
            hook(model, (SAMPLE,), {})
        torch.testing.assert_close(attend(TEXT), expected)


def applied(unet):
    apply(unet)
    try:
        call(unet, None)
    finally:
        remove(unet)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda unet: call(unet, instances([ALL])), "instances of 1 images, and the UNet was"),
        (lambda unet: call(unet, None, global_weight=-1), "must not be negative"),
        (lambda unet: call(unet.conv_in, None), "no cross-attention in this Conv2d"),
        (applied, "ROICtrl is in this UNet"),
    ],
)
def test_mistakes_are_named(unet, mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake(unet)
