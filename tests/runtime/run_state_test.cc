// A run's state as bytes: what comes back is what went in, and nothing else is taken for it.
#include "runtime/pipelines/run_state.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "runtime/loaders/safetensors.h"

namespace denoised {
namespace {

HostTensor Tensor(float value) {
  HostTensor tensor{DType::kFloat32, {1, 2, 1, 2, 2}, {}};
  for (int i = 0; i < 8; ++i, value += 1) {
    tensor.data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return tensor;
}

RunState Sample() {
  return {"of a request", "of embeddings", 7,
          Tensor(1),      "a solver",      {{"clean0", Tensor(2)}, {"last", Tensor(3)}}};
}

void ExpectSame(const RunState& a, const RunState& b) {
  EXPECT_EQ(a.request, b.request);
  EXPECT_EQ(a.embeddings, b.embeddings);
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.solver, b.solver);
  EXPECT_EQ(a.latents.data, b.latents.data);
  EXPECT_EQ(a.latents.shape, b.latents.shape);
  ASSERT_EQ(a.history.size(), b.history.size());
  for (const auto& [name, tensor] : a.history) EXPECT_EQ(tensor.data, b.history.at(name).data);
}

// The error, or a failure where there is none.
std::optional<Error> Refusal(const std::string& bytes) {
  try {
    ParseRunState(bytes);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

TEST(RunState, ComesBackAsItWas) {
  ExpectSame(ParseRunState(SerializeRunState(Sample())), Sample());
  RunState bare = Sample();
  bare.history.clear();
  bare.embeddings = "";
  bare.step = 0;
  ExpectSame(ParseRunState(SerializeRunState(bare)), bare);
}

TEST(RunState, ForeignBytesAreRefusedByName) {
  const std::string other = SerializeSafetensors({{"x", RawTensor{"F32", {1}, "abcd"}}});
  for (const std::string& bytes : {std::string("\0", 1), std::string("hello"), other,
                                   std::string(1000, '\xff'), std::string(1000, '\0')}) {
    const auto error = Refusal(bytes);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(error->field(), "saved");
  }
}

// Seeded: bytes changed, cut off, put in, repeated.
TEST(RunState, DamagedBytesAreRefusedOrMeanTheSame) {
  const std::string whole = SerializeRunState(Sample());
  std::mt19937 random(17);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (int change = 1 + random() % 3; change > 0; --change) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 1:
          bytes.resize(1 + at);
          break;
        case 2:
          bytes.insert(at, 1 + random() % 9, static_cast<char>(random()));
          break;
        default:
          bytes.insert(at, bytes.substr(at, 1 + random() % 64));
      }
    }
    if (const auto error = Refusal(bytes)) {
      ++refused;
      EXPECT_EQ(error->code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(error->field(), "saved");
    } else {
      ExpectSame(ParseRunState(bytes), Sample());
    }
  }
  EXPECT_GT(refused, 19000);
}

TEST(RunState, ARequestIsKnownByAllThatItsLatentsDependOn) {
  RunRequest request;
  request.prompt = "a prompt";
  request.parameters.guidance_scale = 1;
  const std::string digest = RequestDigest(request);
  const auto differs = [&](const std::function<void(RunRequest*)>& edit) {
    RunRequest other = request;
    edit(&other);
    return RequestDigest(other) != digest;
  };
  EXPECT_TRUE(differs([](RunRequest* r) { r->prompt += "!"; }));
  EXPECT_TRUE(differs([](RunRequest* r) { r->parameters.seed = 1; }));
  EXPECT_TRUE(differs([](RunRequest* r) { r->latents = Tensor(1); }));
  EXPECT_TRUE(differs([](RunRequest* r) { r->parameters.flow_shift = 2; }));
  EXPECT_TRUE(differs([](RunRequest* r) { r->parameters.guidance_scale = 2; }));
  EXPECT_TRUE(differs([](RunRequest* r) { r->parameters.linear = LinearNumerics::kPacked; }));
  EXPECT_FALSE(differs([](RunRequest* r) { r->parameters.negative_prompt = "unused"; }));
  EXPECT_FALSE(differs([](RunRequest* r) { r->job_id = "another"; }));
  EXPECT_FALSE(differs([](RunRequest* r) { r->saved = "anything"; }));
}

}  // namespace
}  // namespace denoised
