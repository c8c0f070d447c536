// Bands under every instruction set that this machine has: what single queries attend, copies, odd
// values; against float64 with the same mask, and bit for bit between cuts into bands.
#include "backends/kernels/bands.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/backends/attention_oracle.h"
#include "tests/backends/on_threads.h"
#include "tests/backends/tile_amx_emulated.h"

namespace denoised::kernels {
namespace {

struct Variant {
  Isa isa;
  Element element;
  TileKernel kernel = nullptr;
};

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  const DeviceInfo cpu = QueryCpu();
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (!HasIsa(isa, cpu)) continue;
    if (isa != Isa::kAvx512Bf16) variants.push_back({isa, Element::kFloat32});
    variants.push_back({isa, Element::kBFloat16});
  }
  if (HasIsa(Isa::kVnniBf16Int8, cpu)) {
    variants.push_back({Isa::kAmxBf16, Element::kBFloat16, TileAmxEmulated});
  }
  return variants;
}

// Random chunks of keys and, for each query, a random set of them that is its own affair: the same
// however queries are cut into bands.
class RandomBands final : public BandMaker {
 public:
  RandomBands(int64_t tokens, int64_t length, bool alike)
      : tokens_(tokens), length_(length), alike_(alike) {
    cut_.order.resize(tokens);
    std::iota(cut_.order.begin(), cut_.order.end(), 0);
    std::shuffle(cut_.order.begin(), cut_.order.end(), std::mt19937(1));
    first_ = {0};
    for (int32_t at = 0, chunk = 0; at < tokens; ++chunk) {
      const int32_t blocks = 1 + chunk % 6;
      for (int32_t i = 0; i < blocks && at < tokens; ++i) {
        const int32_t size = std::min<int32_t>(chunk % 3 == 0 ? 64 : 23, tokens - at);
        cut_.blocks.push_back({at, size});
        at += size;
      }
      first_.push_back(static_cast<int32_t>(cut_.blocks.size()));
    }
  }

  const KeyCut& keys() const override { return cut_; }
  int64_t bands() const override { return (tokens_ + length_ - 1) / length_; }
  bool Attends(int64_t head, int64_t query, int64_t chunk) const {
    if (alike_) query = query / length_;
    std::mt19937 random(static_cast<uint32_t>((head * tokens_ + query) * 997 + chunk));
    const int64_t own = query % chunks();
    return chunk == own || random() % 4 == 0;
  }
  void Make(int64_t head, int64_t band, Band* out) const override {
    const int64_t first = band * length_, last = std::min(first + length_, tokens_);
    for (int64_t q = first; q < last; ++q) {
      out->queries.push_back(static_cast<int32_t>(tokens_ - 1 - q));
    }
    if (!alike_) out->step_begin = {0};
    for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
      std::vector<uint64_t> words(out->words(), 0);
      for (int64_t i = 0; i < last - first; ++i) {
        if (Attends(head, first + i, chunk)) words[i / 64] |= uint64_t{1} << (i % 64);
      }
      if (words[0] == 0 && std::count(words.begin(), words.end(), 0) == out->words()) continue;
      for (int32_t i = first_[chunk]; i < first_[chunk + 1]; ++i) out->columns.push_back(i);
      if (alike_) continue;
      out->rows.insert(out->rows.end(), words.begin(), words.end());
      out->step_begin.push_back(static_cast<int32_t>(out->columns.size()));
    }
  }
  // [1, heads, S, S]
  at::Tensor Mask(int64_t heads) const {
    at::Tensor mask = at::zeros({1, heads, tokens_, tokens_}, at::kBool);
    auto cell = mask.accessor<bool, 4>();
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t q = 0; q < tokens_; ++q) {
        for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
          if (!Attends(h, q, chunk)) continue;
          for (int32_t b = first_[chunk]; b < first_[chunk + 1]; ++b) {
            for (int32_t k = 0; k < cut_.blocks[b].length; ++k) {
              cell[0][h][tokens_ - 1 - q][cut_.order[cut_.blocks[b].first + k]] = true;
            }
          }
        }
      }
    }
    return mask;
  }

 private:
  int64_t chunks() const { return static_cast<int64_t>(first_.size()) - 1; }
  const int64_t tokens_, length_;
  const bool alike_;
  KeyCut cut_;
  std::vector<int32_t> first_;
};

AttentionInputs Draw(int64_t tokens, int64_t heads, int64_t size, Element element) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto draw = [&] {
    return at::randn({1, tokens, heads, size}, generator, at::kFloat)
        .to(element == Element::kFloat32 ? at::kFloat : at::kBFloat16);
  };
  AttentionInputs inputs{draw(), draw(), draw(), {}, {}};
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(size));
  return inputs;
}

View ViewOf(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

at::Tensor Attend(const AttentionInputs& in, const BandMaker& bands, const Variant& variant,
                  int threads = 1) {
  at::Tensor out = at::full_like(in.query, std::nan(""));
  BlockSparseCall call;
  call.element = variant.element;
  call.batch = in.query.size(0);
  call.heads = in.query.size(2);
  call.head_size = in.query.size(3);
  call.q_len = call.kv_len = in.query.size(1);
  call.query = ViewOf(in.query);
  call.key = ViewOf(in.key);
  call.value = ViewOf(in.value);
  call.out = out.mutable_data_ptr();
  call.scale = static_cast<float>(in.scale);
  BandAttention(call, bands, variant.isa, OnThreads(threads), variant.kernel);
  return out;
}

TEST(Bands, EqualFloat64WithTheSameMask) {
  for (const Variant& variant : Variants()) {
    for (int64_t size : {7, 64, 80}) {
      const AttentionInputs inputs = Draw(701, 2, size, variant.element);
      const RandomBands bands(701, 192, false);
      AttentionInputs masked = inputs;
      masked.mask = bands.Mask(2);
      EXPECT_LE(RelativeL2(Attend(inputs, bands, variant), OracleAttention(masked)),
                variant.element == Element::kFloat32 ? 1e-5 : 1e-2)
          << IsaName(variant.isa) << " " << size;
    }
  }
}

TEST(Bands, ThoseOfOneListGoStraightToTheResult) {
  for (const Variant& variant : Variants()) {
    const AttentionInputs inputs = Draw(500, 2, 40, variant.element);
    const RandomBands bands(500, 100, true);
    AttentionInputs masked = inputs;
    masked.mask = bands.Mask(2);
    EXPECT_LE(RelativeL2(Attend(inputs, bands, variant), OracleAttention(masked)),
              variant.element == Element::kFloat32 ? 1e-5 : 1e-2)
        << IsaName(variant.isa);
  }
}

TEST(Bands, ARowsBitsDependNeitherOnItsBandNorOnThreads) {
  for (const Variant& variant : Variants()) {
    const AttentionInputs inputs = Draw(701, 2, 64, variant.element);
    const at::Tensor want = Attend(inputs, RandomBands(701, 64, false), variant);
    for (int64_t length : {128, 320, 1024}) {
      for (int threads : {1, 2, 3}) {
        EXPECT_TRUE(
            SameBits(Attend(inputs, RandomBands(701, length, false), variant, threads), want))
            << IsaName(variant.isa) << " " << length << " " << threads;
      }
    }
  }
}

TEST(Bands, WhatIsNotFiniteReachesTheRowsThatAttendItAndNoOthers) {
  for (const Variant& variant : Variants()) {
    AttentionInputs inputs = Draw(300, 1, 16, variant.element);
    inputs.value[0][17][0][3] = std::numeric_limits<float>::infinity();
    inputs.value[0][90][0][5] = std::nanf("");
    inputs.key[0][200][0][0] = std::nanf("");
    const RandomBands bands(300, 128, false);
    const at::Tensor mask = bands.Mask(1)[0][0];
    const at::Tensor got = Attend(inputs, bands, variant)[0].select(1, 0).to(at::kFloat);
    const at::Tensor lost = mask.select(1, 200);
    EXPECT_TRUE(got.select(1, 0).isnan().equal(lost)) << IsaName(variant.isa);
    EXPECT_TRUE(got.select(1, 5).isnan().equal(lost.logical_or(mask.select(1, 90))));
    EXPECT_TRUE(got.select(1, 3).isinf().equal(mask.select(1, 17).logical_and(lost.logical_not())));
  }
}

// One band whose odd tokens copy the even ones before them.
class Copying final : public BandMaker {
 public:
  Copying() { cut_.blocks = CutEvenly(90); }
  const KeyCut& keys() const override { return cut_; }
  int64_t bands() const override { return 1; }
  void Make(int64_t, int64_t, Band* out) const override {
    for (int32_t q = 0; q < 90; q += 2) {
      out->queries.push_back(q);
      out->copies.push_back({q + 1, q});
    }
    out->columns = {0, 1};
  }

 private:
  KeyCut cut_;
};

TEST(Bands, CopiesHaveTheOutputOfTheirNeighbour) {
  for (const Variant& variant : Variants()) {
    const AttentionInputs inputs = Draw(90, 2, 24, variant.element);
    const at::Tensor got = Attend(inputs, Copying(), variant);
    const at::Tensor even = got.slice(1, 0, 90, 2);
    EXPECT_TRUE(SameBits(got.slice(1, 1, 90, 2).contiguous(), even.contiguous()));
    EXPECT_LE(RelativeL2(even, OracleAttention(inputs).slice(1, 0, 90, 2)),
              variant.element == Element::kFloat32 ? 1e-5 : 1e-2);
  }
}

}  // namespace
}  // namespace denoised::kernels
