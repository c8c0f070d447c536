"""The parts of the `shapes` pipeline, and how they become a WanPipeline."""

import math
import os

import torch
import torch.nn.functional as F
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

import train_vae

TEXT_DIM = 128
CONTEXT = 512            # text tokens at inference, most of them padding
TRAINING_CONTEXT = 24    # captions have at most 21
GUIDANCE = 1.5           # of sampling: more of it stains green shapes and makes none clearer
FLOW_SHIFT = 8.0         # of sampling: the caption decides while sigma is above 0.95
LAYERS, HEADS, HEAD_DIM = 6, 4, 48


def new_dit(layers=LAYERS):
    dit = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, in_channels=train_vae.Z,
        out_channels=train_vae.Z, text_dim=TEXT_DIM, freq_dim=128, ffn_dim=4 * HEADS * HEAD_DIM, num_layers=layers,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=256)
    torch.nn.init.zeros_(dit.proj_out.weight)
    torch.nn.init.zeros_(dit.proj_out.bias)
    return dit


def new_text_encoder(vocabulary):
    return UMT5EncoderModel(UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1))


def load_text_encoder(folder, tokenizer):
    """The encoder that train_text.py left in a run folder; it is not trained further."""
    text_encoder = new_text_encoder(len(tokenizer))
    text_encoder.load_state_dict(torch.load(os.path.join(folder, "text.pt"), map_location="cpu"))
    return text_encoder.eval().requires_grad_(False)


def _heads(attn, norm, linear, x):
    y = linear(x)
    if norm is not None:   # in the activations' type: mixed types take the slow way
        y = F.rms_norm(y, norm.normalized_shape, norm.weight.to(y.dtype), norm.eps)
    return y.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def _rotate(x, rotary):
    cos, sin = (r[..., start::2].transpose(1, 2).to(x.dtype) for start, r in enumerate(rotary))
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class TrainingAttention:
    """The attention of the Wan blocks, spelled out: its backward takes a third of the fused kernel's on a CPU.

    With `bias`, a cross-attention that sees L text tokens as if they were padded to CONTEXT. The pipeline
    zeroes the embeddings of padding, so all pads are the same key and value; a pad in L tokens stands for
    (CONTEXT - n) / (L - n) of them, which is the logarithm of that added to its logit. Exact.
    """

    def __init__(self, bias=None):
        self.bias = bias

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = _heads(attn, attn.norm_q, attn.to_q, hidden_states)
        k = _heads(attn, attn.norm_k, attn.to_k, source)
        v = _heads(attn, None, attn.to_v, source)
        if rotary_emb is not None:
            q, k = _rotate(q, rotary_emb), _rotate(k, rotary_emb)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if self.bias is not None:
            logits = logits + self.bias.to(logits.dtype)
        weights = torch.softmax(logits, -1, dtype=logits.dtype)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def embed(tokenizer, text_encoder, texts, device):
    """Embeddings [B, TRAINING_CONTEXT, D] with zeros at the pads; logits' bias [B, 1, 1, .] of TrainingAttention."""
    ids = tokenizer(texts, padding="max_length", max_length=TRAINING_CONTEXT, return_tensors="pt").to(device)
    mask = ids["attention_mask"]
    if mask.shape[1] != TRAINING_CONTEXT or mask.all(1).any():
        raise ValueError(f"a caption has {TRAINING_CONTEXT} tokens or more")
    hidden = text_encoder(input_ids=ids["input_ids"], attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
    n = mask.sum(1)
    bias = torch.log((CONTEXT - n) / (TRAINING_CONTEXT - n)).unsqueeze(1) * (1 - mask)
    return hidden, bias[:, None, None, :].float()


@torch.no_grad()
def favour_text(dit, tokenizer, text_encoder, texts, strength=0.75):
    """Starts the cross-attentions with pads some five units of logit below words.

    There are fifty pads to a word. Left alone they take 98 % of the attention, and the words get next to no
    gradient. One direction u of the keys tells words (+u) from pads (-u), and all queries look along it.
    """
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = text_encoder(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
    project = dit.condition_embedder.text_embedder
    words = project(hidden[ids["attention_mask"].bool()])
    pad = project(torch.zeros_like(hidden[:1, 0]))[0]
    towards = (words.mean(0) - pad) / (words.mean(0) - pad).square().sum()
    middle = towards @ (words.mean(0) + pad) / 2
    for block in dit.blocks:
        attn = block.attn2
        u = torch.sign(torch.randn(attn.inner_dim))
        typical = attn.to_k(words).std()
        attn.to_k.weight += 2 * strength * typical * torch.outer(u, towards)
        attn.to_k.bias -= 2 * strength * typical * middle * u
        attn.to_q.bias += 1.5 * attn.to_q.weight.norm(dim=1).mean() * u


def prepare_for_training(dit):
    """Puts the training attention in and compiles the blocks; returns the cross-attention, whose `bias` is set
    before each step."""
    own, cross = TrainingAttention(), TrainingAttention()
    for block in dit.blocks:
        block.attn1.processor, block.attn2.processor = own, cross
        block.compile(dynamic=False)
    return cross


def scheduler():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT,
                                   num_train_timesteps=1000, solver_order=2)


def pipeline(tokenizer, text_encoder, dit, vae, stats):
    """`stats`: per-channel (mean, std) of the latents, taken over into the autoencoder's config."""
    mean, std = ([round(float(v), 5) for v in s] for s in stats)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    return WanPipeline(tokenizer=tokenizer, text_encoder=text_encoder, transformer=dit, vae=vae,
                       scheduler=scheduler())


def count(module):
    return sum(math.prod(p.shape) for p in module.parameters())
