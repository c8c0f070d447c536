"""Trains the text encoder to understand captions before the DiT sees them.

Every token, pads aside, must say through a linear read-out what the whole caption says: colour, shape, motion, size
and background, or that it does not say. So wherever a cross-attention looks first, it finds the caption's content.
Trained together with the DiT from nothing, the embeddings were noise to it, and it learned to ignore them.
Takes a minute of one core. Writes DIR/text.pt and DIR/tokenizer/; the read-outs are thrown away.
"""

import argparse
import os
import random
import sys

import torch
import torch.nn.functional as F

import captions
import model
import tokenizer as tokenizer_module
import train_vae
import world

ANSWERS = {"colour": list(world.COLOURS), "shape": list(world.SHAPES), "motion": list(world.MOTIONS),
           "size": list(world.SIZES), "background": list(world.BACKGROUNDS)}


def questions(rng, count, hard=0.0):
    """Captions, and for each question the number of each caption's answer; the last number is "not said".

    At least a share of `hard` says "from left to right" or the reverse, where the order of the words is all.
    """
    combinations = world.combinations(False)
    texts, answers = [], {name: [] for name in ANSWERS}
    while len(texts) < count:
        scene = world.draw_scene(rng, rng.choice(combinations))
        text = "" if rng.random() < 0.05 else captions.caption(rng, scene)
        if len(texts) < hard * count and "from" not in text:
            continue
        texts.append(text)
        for name, values in ANSWERS.items():
            said = captions.says(text, name)
            answers[name].append(values.index(getattr(scene, name)) if said else len(values))
    return texts, {name: torch.tensor(numbers) for name, numbers in answers.items()}


def losses(tokenizer, text_encoder, heads, texts, answers):
    """(loss, share of right answers), over tokens."""
    ids = tokenizer(texts, padding="longest", return_tensors="pt")
    mask = ids["attention_mask"]
    hidden = text_encoder(input_ids=ids["input_ids"], attention_mask=mask).last_hidden_state[mask.bool()]
    loss, right = 0.0, []
    for name, head in heads.items():
        wanted = answers[name].unsqueeze(1).expand_as(mask)[mask.bool()]
        guess = head(hidden)
        loss = loss + F.cross_entropy(guess, wanted)
        right.append((guess.argmax(-1) == wanted).float().mean())
    return loss, torch.stack(right).mean().item()


def train(tokenizer, steps, batch, peak):
    torch.manual_seed(3)
    rng = random.Random(5)
    text_encoder = model.new_text_encoder(len(tokenizer))
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(model.TEXT_DIM, len(values) + 1)
                                 for name, values in ANSWERS.items()})
    parameters = [*text_encoder.parameters(), *heads.parameters()]
    adam = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        loss, right = losses(tokenizer, text_encoder, heads, *questions(rng, batch, hard=0.3))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        if step % 100 == 99:
            print(f"text step {step + 1} loss {loss.item():.4f} right {100 * right:.2f} %", flush=True)
    with torch.no_grad():
        right = losses(tokenizer, text_encoder, heads, *questions(random.Random(6), 2000))[1]
    print(f"text: {100 * right:.2f} % of 2000 fresh captions' answers right", flush=True)
    return text_encoder


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dir", required=True)
    p.add_argument("--steps", type=int, default=800)
    p.add_argument("--batch", type=int, default=96)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    folder = os.path.join(args.dir, "tokenizer")
    os.makedirs(folder, exist_ok=True)
    tokenizer = tokenizer_module.build(folder)
    tokenizer.save_pretrained(folder)
    text_encoder = train(tokenizer, args.steps, args.batch, args.lr)
    train_vae.save(os.path.join(args.dir, "text.pt"), text_encoder.state_dict())


if __name__ == "__main__":
    sys.exit(main())
