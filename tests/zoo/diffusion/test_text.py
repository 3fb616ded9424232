"""The small text encoder, and pixels in place of an autoencoder."""

import pytest
import torch
import torch.nn.functional as F

from visattn.zoo.diffusion.pixels import PatchAutoencoder
from visattn.zoo.diffusion.text import encode, make_text_encoder, make_tokenizer

WORDS = ("a", "and", "red", "seven", "seventy", ",")


def test_words_are_tokens_and_others_are_spelled():
    tokenizer = make_tokenizer(WORDS, 12)
    tokens = tokenizer.tokenize("A red seventy, and a seven")
    assert [t.removesuffix("</w>") for t in tokens] == [
        "a", "red", "seventy", ",", "and", "a", "seven",
    ]  # fmt: skip
    assert len(tokenizer.tokenize("blue")) > 1
    assert tokenizer.unk_token_id not in tokenizer("blue", add_special_tokens=False).input_ids


def test_words_that_are_parts_of_others_are_tokens_of_the_same_vocabulary_each_time():
    words = ("redo", "edit", "red", "ed", "tedious", "one", "on", "Été", "don't")
    tokenizers = [make_tokenizer(words, 12) for _ in range(3)]
    for word in words[:-1]:
        assert len(tokenizers[0].tokenize(word)) == 1, word
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab() == tokenizers[2].get_vocab()


def test_tokenizer_is_kept_by_its_folder(tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = make_tokenizer(WORDS, 12)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a red seven, and blue"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == 12


def test_equal_captions_have_equal_states_and_long_ones_are_cut():
    tokenizer = make_tokenizer(WORDS, 6)
    encoder = make_text_encoder(
        tokenizer, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ).eval()
    states = encode(tokenizer, encoder, ["a red seven", "", "a red seven", "red " * 9])
    assert states.shape == (4, 6, 8)
    assert torch.equal(states[0], states[2]) and not torch.equal(states[0], states[1])


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_patches_are_unshuffled_pixels_and_come_back(factor):
    vae = PatchAutoencoder(factor)
    image = torch.randn(2, 3, 8, 12)
    latents = vae.encode(image).latent_dist.sample()
    torch.testing.assert_close(latents, F.pixel_unshuffle(image, factor))
    torch.testing.assert_close(vae.decode(latents).sample, image, atol=1e-5, rtol=0)
    assert 2 ** (len(vae.config.block_out_channels) - 1) == factor
