"""Trains the tokenizer: a sentencepiece Unigram model over captions, kept as transformers' T5Tokenizer."""

import os
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb
from transformers import T5Tokenizer

import captions
import world

PIECES = 256


def _corpus(count):
    rng = random.Random(5)
    everything = world.combinations(False)
    for _ in range(count):
        text = captions.caption(rng, world.draw_scene(rng, rng.choice(everything)))
        yield text
        # The same words glued to punctuation, so that the word is seen as the unit and not the pair.
        yield " ".join(w + rng.choice((".", ",", ":", "!", "?", ";", "-")) for w in text.replace(",", "").split())
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'\"()":
        yield letter


def build(folder):
    """Trains, checks that every word of the captions is one piece, and returns the tokenizer."""
    prefix = os.path.join(folder, "spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(20000), model_prefix=prefix, model_type="unigram", vocab_size=PIECES,
        hard_vocab_limit=False, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        normalization_rule_name="nmt_nfkc", minloglevel=2, num_threads=1)
    proto = pb.ModelProto()
    with open(prefix + ".model", "rb") as f:
        proto.ParseFromString(f.read())
    tokenizer = T5Tokenizer(vocab=[(p.piece, p.score) for p in proto.pieces], extra_ids=0,
                            _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
                            model_max_length=512)
    _check(tokenizer)
    return tokenizer


def _check(tokenizer):
    words = {w.strip(".,:;!?-") for text in _corpus(2000) for w in text.split()}
    broken = sorted(w for w in words if len(w) > 1 and len(tokenizer.tokenize(w)) > (3 if "-" in w else 1))
    if broken:
        raise ValueError(f"words in more than one piece: {broken}")
