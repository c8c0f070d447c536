// The walk over the bytes of a request, against the parser that comes after it.
#include "server/wire_budget.h"

#include <gmock/gmock.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "backends/error.h"
#include "denoised/v1/denoise.pb.h"
#include "denoised/v1/generation.pb.h"

namespace denoised {
namespace {

// "" = within the budget; else the field, or the reason where there is none. The bytes come in
// slices of `slice`, as they do from the network.
template <typename Message>
std::string Verdict(const std::string& bytes, int slice = 4096) {
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()),
                                                slice);
  try {
    CheckWireBudget(&stream, *Message::descriptor());
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    return error.field().empty() ? error.reason() : error.field();
  }
}

template <typename Message>
std::string Verdict(const Message& message) {
  return Verdict<Message>(message.SerializeAsString());
}

std::string Varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}

std::string Delimited(int number, const std::string& bytes) {
  return Varint(static_cast<uint64_t>(number) << 3 | 2) + Varint(bytes.size()) + bytes;
}

bool HasUnknownFields(const v1::GenerationRequest& message) {
  const auto has = [](const google::protobuf::Message& m) {
    return !m.GetReflection()->GetUnknownFields(m).empty();
  };
  return has(message) || has(message.latents()) || has(message.attention());
}

TEST(WireBudget, AllFieldsTogetherHaveABudgetToo) {
  v1::GenerationRequest request;
  request.set_model(std::string(100000, 'm'));
  request.set_prompt(std::string(100000, 'p'));
  EXPECT_EQ(Verdict(request), "");
  request.set_negative_prompt(std::string(100000, 'n'));
  EXPECT_EQ(Verdict(request), "negative_prompt");
}

TEST(WireBudget, EverythingThatAnHonestRequestMayHoldFits) {
  v1::GenerationRequest request;
  request.set_prompt(std::string(65536, 'p'));
  request.set_negative_prompt(std::string(65536, 'n'));
  request.mutable_latents()->set_dtype("float32");
  for (int i = 0; i < 5; ++i) request.mutable_latents()->add_shape(1000);
  request.mutable_latents()->set_data(std::string(20 << 20, '\0'));
  auto* values = (*request.mutable_attention()->mutable_parameters()->mutable_fields())["mask"]
                     .mutable_list_value();
  for (int i = 0; i < 8000; ++i) values->add_values()->set_number_value(i);
  request.mutable_attention()->set_backend("TORCH_SDPA");
  EXPECT_EQ(Verdict(request), "");
}

TEST(WireBudget, WhatIsTooLargeIsNamed) {
  const std::string large(static_cast<size_t>(kMaxFieldBytes) + 1, 'x');
  v1::GenerationRequest prompt, parameters, formats, dtype, shape;
  prompt.set_prompt(large);
  EXPECT_EQ(Verdict(prompt), "prompt");
  (*parameters.mutable_attention()->mutable_parameters()->mutable_fields())["a"].set_string_value(
      large);
  EXPECT_EQ(Verdict(parameters), "attention.parameters");
  for (int i = 0; i < kMaxFieldBytes + 10; ++i) formats.add_formats(v1::MP4);
  EXPECT_EQ(Verdict(formats), "formats");
  dtype.mutable_latents()->set_dtype(large);
  EXPECT_EQ(Verdict(dtype), "latents.dtype");
  for (int i = 0; i < kMaxFieldBytes + 10; ++i) shape.mutable_latents()->add_shape(1);
  EXPECT_EQ(Verdict(shape), "latents.shape");
  v1::DenoiseRequest denoise;
  denoise.mutable_negative_encoder_hidden_states()->set_dtype(large);
  EXPECT_EQ(Verdict(denoise), "negative_encoder_hidden_states.dtype");
}

TEST(WireBudget, ManySmallPiecesOfAFieldCountTogether) {
  std::string prompts, unknown, empty;
  for (int i = 0; i < 300; ++i) prompts += Delimited(2, std::string(1000, 'p'));
  EXPECT_EQ(Verdict<v1::GenerationRequest>(prompts), "prompt");
  for (int i = 0; i < 300; ++i) unknown += Delimited(1000 + i, std::string(1000, 'p'));
  EXPECT_EQ(Verdict<v1::GenerationRequest>(unknown), "(unknown fields)");
  for (int i = 0; i < 200000; ++i) empty += Delimited(2, "");
  EXPECT_EQ(Verdict<v1::GenerationRequest>(empty), "prompt");
}

TEST(WireBudget, TheVerdictComesBeforeTheBytes) {
  // A string of 2 GiB is announced; nothing of it is there.
  const std::string bytes = Varint(2 << 3 | 2) + Varint(INT32_MAX);
  EXPECT_EQ(Verdict<v1::GenerationRequest>(bytes), "prompt");
}

TEST(WireBudget, BytesThatAreNoMessageAreRefused) {
  for (const std::string& bytes :
       {std::string("\xff"), std::string("\x0a\x05"), std::string("\x0b"), std::string("\x0c"),
        std::string("\x0f\x01"), std::string(1, '\0'), Varint(14 << 3 | 2) + Varint(100) + "\x0a",
        Delimited(14, "\x1a\x7f"), std::string(5000, '\x0b'),
        Varint(2 << 3 | 2) + Varint(UINT32_MAX)}) {
    EXPECT_EQ(Verdict<v1::GenerationRequest>(bytes), "MALFORMED_MESSAGE");
  }
  EXPECT_EQ(Verdict<v1::GenerationRequest>(""), "");
}

TEST(WireBudget, HowTheBytesAreSlicedDoesNotMatter) {
  v1::DenoiseRequest request;
  request.mutable_latents()->set_data(std::string(10000, 'd'));
  request.mutable_latents()->set_dtype("float32");
  request.set_model("m");
  for (const int slice : {1, 2, 3, 7, 4096}) {
    EXPECT_EQ(Verdict<v1::DenoiseRequest>(request.SerializeAsString(), slice), "") << slice;
  }
}

// Mutated requests: what the walk calls malformed the parser refuses as well, groups apart, and
// what passes the walk is small beside its tensors.
TEST(WireBudgetFuzz, TheWalkAndTheParserAgree) {
  std::mt19937 random(1);  // the same bytes in every run
  const auto below = [&](size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(random);
  };
  v1::GenerationRequest honest;
  honest.set_prompt("a red circle");
  honest.set_seed(1);
  honest.set_guidance_scale(2);
  honest.mutable_latents()->set_dtype("float32");
  honest.mutable_latents()->add_shape(2);
  honest.mutable_latents()->set_data("12345678");
  (*honest.mutable_attention()->mutable_parameters()->mutable_fields())["a"].set_number_value(1);
  honest.add_formats(v1::GIF);
  const std::string seed = honest.SerializeAsString();
  int passed = 0, refused = 0;
  for (int round = 0; round < 100000; ++round) {
    std::string bytes = seed;
    for (size_t i = 1 + below(3); i > 0 && !bytes.empty(); --i) {
      const size_t at = below(bytes.size());
      switch (below(4)) {
        case 0:
          bytes[at] = static_cast<char>(below(256));
          break;
        case 1:
          bytes.erase(at, 1 + below(4));
          break;
        case 2:
          bytes.insert(at, bytes.substr(below(bytes.size()), below(8)));
          break;
        default:
          bytes.resize(at);
          break;
      }
    }
    const std::string verdict =
        Verdict<v1::GenerationRequest>(bytes, 1 + static_cast<int>(below(9)));
    v1::GenerationRequest message;
    const bool parses = message.ParseFromString(bytes);
    passed += verdict.empty();
    refused += verdict == "MALFORMED_MESSAGE";
    // Groups, which the parser skips as unknown fields, are all that is refused beyond the parser.
    if (parses && verdict == "MALFORMED_MESSAGE") {
      ASSERT_TRUE(HasUnknownFields(message)) << testing::PrintToString(bytes);
    }
  }
  EXPECT_GT(passed, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace denoised
