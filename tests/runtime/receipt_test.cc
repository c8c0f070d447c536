// The fingerprint as a table: one thing changed differs; what does not change the pixels does not.
#include "runtime/engine/receipt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

ReceiptEntry Row(AttentionRole role, int64_t first, int64_t last, AttnBackend ran,
                 const std::string& parameters = "") {
  ReceiptEntry row;
  row.role = role;
  row.first_step = first;
  row.last_step = last;
  row.ran = row.selection.granted.backend = ran;
  row.parameters = parameters;
  row.calls = 4;
  row.seconds = 0.5;
  return row;
}

// Everything that a fingerprint is made from.
struct Case {
  Receipt receipt;
  GenerationRequest request;
  ResolvedParameters parameters;
  DenoiseRequest denoise;

  Case() {
    receipt.model_digest = "m";
    receipt.device = "a CPU";
    receipt.dtype = "float32";
    receipt.version = "1";
    receipt.torch_version = "2";
    receipt.kernels = "avx2";
    receipt.linear = "packed";
    receipt.entries = {
        Row(AttentionRole::kSelf, 0, 3, AttnBackend::kVideoSparseAttn, R"({"sparsity":0.5})"),
        Row(AttentionRole::kCross, 0, 3, AttnBackend::kFlashAttn)};
    request.prompt = "a cat";
    parameters.seed = 7;
    parameters.height = parameters.width = 64;
    parameters.num_frames = 5;
    parameters.fps = 16;
    parameters.num_inference_steps = 4;
    parameters.guidance_scale = 5;
    parameters.flow_shift = 3;
    parameters.max_sequence_length = 512;
    parameters.negative_prompt = "blurry";
    parameters.scheduler = "UniPC";
    denoise.latents = {DType::kFloat32, {1, 2}, "abcdefgh"};
    denoise.timestep = {DType::kInt64, {1}, "12345678"};
    denoise.encoder_hidden_states = {DType::kFloat32, {1, 1}, "wxyz"};
    denoise.negative_encoder_hidden_states = HostTensor{DType::kFloat32, {1, 1}, "stuv"};
    denoise.guidance_scale = 5;
  }
  std::string OfJob() const { return Fingerprint(receipt, request, parameters); }
  std::string OfDenoise() const { return Fingerprint(receipt, DenoiseFields(denoise)); }
};

using Change = std::function<void(Case&)>;
struct NamedChange {
  std::string name;
  Change change;
};

std::vector<ReceiptEntry>& Rows(Case& c) { return c.receipt.entries; }

// Of the model, the code and what ran: they count for jobs and Denoise calls alike.
std::vector<NamedChange> SharedChanges() {
  return {
      {"a file of the model", [](Case& c) { c.receipt.model_digest = "v"; }},
      {"dtype", [](Case& c) { c.receipt.dtype = "bfloat16"; }},
      {"version", [](Case& c) { c.receipt.version = "1+abc"; }},
      {"LibTorch", [](Case& c) { c.receipt.torch_version = "3"; }},
      {"kernels", [](Case& c) { c.receipt.kernels = "avx512"; }},
      {"numerics", [](Case& c) { c.receipt.linear = "exact"; }},
      {"backend", [](Case& c) { Rows(c)[0].ran = AttnBackend::kReference; }},
      {"parameters", [](Case& c) { Rows(c)[0].parameters = R"({"sparsity":0.6})"; }},
      {"steps of a backend",
       [](Case& c) {
         Rows(c)[0].last_step = 2;
         Rows(c).push_back(Row(AttentionRole::kSelf, 3, 3, AttnBackend::kFlashAttn));
       }},
      {"layers of a backend",
       [](Case& c) {
         Rows(c)[0].layers = Interval{0, 2};
         Rows(c).push_back(Row(AttentionRole::kSelf, 0, 3, AttnBackend::kFlashAttn));
         Rows(c).back().layers = Interval{3, 5};
       }},
      {"layers of a backend, others",
       [](Case& c) {
         Rows(c)[0].layers = Interval{0, 3};
         Rows(c).push_back(Row(AttentionRole::kSelf, 0, 3, AttnBackend::kFlashAttn));
         Rows(c).back().layers = Interval{4, 5};
       }},
      {"layers of a backend at some steps",
       [](Case& c) {
         Rows(c).push_back(Row(AttentionRole::kSelf, 2, 3, AttnBackend::kFlashAttn));
         Rows(c).back().layers = Interval{3, 5};
         Rows(c).push_back(Rows(c)[0]);
         Rows(c).back().first_step = 2;
         Rows(c).back().layers = Interval{0, 2};
         Rows(c)[0].last_step = 1;
       }},
      {"role", [](Case& c) { Rows(c)[1].role = AttentionRole::kVae; }},
  };
}

std::vector<NamedChange> JobChanges() {
  return {
      {"seed", [](Case& c) { c.parameters.seed = 8; }},
      {"height", [](Case& c) { c.parameters.height = 80; }},
      {"width", [](Case& c) { c.parameters.width = 80; }},
      {"frames", [](Case& c) { c.parameters.num_frames = 9; }},
      {"steps", [](Case& c) { c.parameters.num_inference_steps = 5; }},
      {"guidance", [](Case& c) { c.parameters.guidance_scale = 5.0000000001; }},
      {"shift", [](Case& c) { c.parameters.flow_shift = 3.1; }},
      {"tokens", [](Case& c) { c.parameters.max_sequence_length = 511; }},
      {"prompt", [](Case& c) { c.request.prompt = "a dog"; }},
      {"negative prompt", [](Case& c) { c.parameters.negative_prompt = ""; }},
      {"solver", [](Case& c) { c.parameters.scheduler = "Euler"; }},
      {"latents",
       [](Case& c) {
         c.request.latents = HostTensor{DType::kFloat32, {1}, "abcd"};
       }},
      {"a line between two fields",
       [](Case& c) {
         c.request.prompt = "a cat\nnegative_prompt 6 blurry";
         c.parameters.negative_prompt = "";
       }},
  };
}

std::vector<NamedChange> DenoiseChanges() {
  return {
      {"latents", [](Case& c) { c.denoise.latents.data[0] = 'z'; }},
      {"shape",
       [](Case& c) {
         c.denoise.latents.shape = {2, 1};
       }},
      {"dtype of latents", [](Case& c) { c.denoise.latents.dtype = DType::kInt32; }},
      {"timestep", [](Case& c) { c.denoise.timestep.data[0] = 'z'; }},
      {"embeddings", [](Case& c) { c.denoise.encoder_hidden_states.data[0] = 'z'; }},
      {"negative", [](Case& c) { c.denoise.negative_encoder_hidden_states->data[0] = 'z'; }},
      {"guidance", [](Case& c) { c.denoise.guidance_scale = 4; }},
      {"output", [](Case& c) { c.denoise.output = DenoiseRequest::Output::kNextLatents; }},
  };
}

// What must be equal.
std::vector<NamedChange> Silent() {
  return {
      {"nothing", [](Case&) {}},
      {"frames a second", [](Case& c) { c.parameters.fps = 30; }},
      {"formats", [](Case& c) { c.request.formats = {ArtifactFormat::kGif}; }},
      {"how parameters were spelt",
       [](Case& c) { c.request.attention.parameters_json = R"({ "sparsity": 5e-1 })"; }},
      {"the device's brand", [](Case& c) { c.receipt.device = "another CPU"; }},
      {"notes", [](Case& c) { c.receipt.notes = {"a remark"}; }},
      {"calls and seconds",
       [](Case& c) {
         Rows(c)[0].calls = 9;
         Rows(c)[0].seconds.reset();
       }},
      {"who chose it",
       [](Case& c) {
         Rows(c)[0].selection.granted.source = SelectionSource::kForce;
         Rows(c)[0].selection.granted.lease_id = "force-1";
         Rows(c)[0].asked = AttnBackend::kReference;
         Rows(c)[0].selection.refusals = {{SelectionSource::kRequest, AttnBackend::kReference, ""}};
       }},
      {"a force in the middle that names what ran anyway",
       [](Case& c) {
         ReceiptEntry forced = Rows(c)[0], after = Rows(c)[0];
         forced.selection.granted.source = SelectionSource::kForce;
         Rows(c)[0].last_step = 0;
         forced.first_step = 1;
         forced.last_step = 2;
         after.first_step = 3;
         Rows(c).push_back(after);
         Rows(c).insert(Rows(c).begin(), forced);
       }},
      {"a force of some layers that names what ran anyway",
       [](Case& c) {
         ReceiptEntry forced = Rows(c)[0], rest = Rows(c)[0];
         forced.selection.granted.source = SelectionSource::kForce;
         Rows(c)[0].last_step = 0;
         forced.first_step = rest.first_step = 1;
         forced.layers = Interval{2, 3};
         rest.layers = Interval{0, 1};
         Rows(c).push_back(forced);
         Rows(c).push_back(rest);
         rest.layers = Interval{4, 9};
         Rows(c).push_back(rest);
       }},
      {"sigmas of a call that returns the prediction", [](Case& c) { c.denoise.sigma = 0.5; }},
  };
}

TEST(Fingerprint, OneThingChangedDiffersAndAllDifferFromEachOther) {
  std::map<std::string, std::string> jobs{{Case().OfJob(), "unchanged"}};
  std::map<std::string, std::string> calls{{Case().OfDenoise(), "unchanged"}};
  const auto add = [](std::map<std::string, std::string>& seen, const std::string& fingerprint,
                      const std::string& name) {
    EXPECT_EQ(fingerprint.size(), 64u);
    const auto [at, fresh] = seen.emplace(fingerprint, name);
    EXPECT_TRUE(fresh) << name << " is as " << at->second;
  };
  for (const auto& changes : {SharedChanges(), JobChanges()}) {
    for (const NamedChange& row : changes) {
      Case changed;
      row.change(changed);
      add(jobs, changed.OfJob(), row.name);
    }
  }
  for (const auto& changes : {SharedChanges(), DenoiseChanges()}) {
    for (const NamedChange& row : changes) {
      Case changed;
      row.change(changed);
      add(calls, changed.OfDenoise(), row.name);
    }
  }
}

TEST(Fingerprint, WhatDoesNotChangeThePixelsDoesNotChangeIt) {
  for (const NamedChange& row : Silent()) {
    Case changed;
    row.change(changed);
    EXPECT_EQ(changed.OfJob(), Case().OfJob()) << row.name;
    EXPECT_EQ(changed.OfDenoise(), Case().OfDenoise()) << row.name;
  }
}

TEST(Fingerprint, WithoutGuidanceNothingIsSteeredAwayFrom) {
  Case one, other;
  one.parameters.guidance_scale = 1;
  other.parameters.guidance_scale = 0.5;
  one.denoise.guidance_scale = other.denoise.guidance_scale = 1;
  other.parameters.negative_prompt = "another";
  other.denoise.negative_encoder_hidden_states.reset();
  EXPECT_EQ(one.OfJob(), other.OfJob());
  EXPECT_EQ(one.OfDenoise(), other.OfDenoise());
}

TEST(Fingerprint, SigmasCountWhereTheNextLatentsAreMade) {
  Case one, other;
  one.denoise.output = other.denoise.output = DenoiseRequest::Output::kNextLatents;
  other.denoise.sigma_next = 0.25;
  EXPECT_NE(one.OfDenoise(), other.OfDenoise());
}

TEST(Fingerprint, OfAnEngineIsTheSameForAForceThatNamesWhatRanAnyway) {
  FakeEngine fake;
  const auto run = [&] { return fake.AwaitEnd(fake.Submit("a cat")).receipt; };
  const Receipt alone = run();
  const ScopedForce force(fake.engine->policy(), AttnBackend::kTorchSdpa);
  const Receipt forced = run();
  EXPECT_EQ(forced.entries[0].selection.granted.source, SelectionSource::kForce);
  EXPECT_EQ(forced.fingerprint, alone.fingerprint);
}

TEST(Fingerprint, ASeedBesideGivenNoiseChangesNothing) {
  Case one, other;
  one.request.latents = other.request.latents = HostTensor{DType::kFloat32, {1}, "abcd"};
  other.parameters.seed = one.parameters.seed + 1;
  EXPECT_EQ(one.OfJob(), other.OfJob());
}

}  // namespace
}  // namespace denoised
