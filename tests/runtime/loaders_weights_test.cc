#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "backends/error.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/loaders/weights.h"

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

RawTensor Raw(const at::Tensor& tensor, const std::string& dtype) {
  const at::Tensor flat = tensor.contiguous();
  return {dtype, flat.sizes().vec(),
          std::string(static_cast<const char*>(flat.data_ptr()), flat.nbytes())};
}

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) /
           (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + "." +
            std::to_string(getpid()));
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  void WriteIndex(const std::string& text) {
    std::ofstream(dir_ / "model.safetensors.index.json") << text;
  }

  std::string Refusal(const std::function<void()>& act,
                      StatusCode code = StatusCode::kInvalidArgument) {
    try {
      act();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    return "no error";
  }
  std::string OpenRefusal() {
    return Refusal([&] { Weights::Open(dir_, "model"); });
  }

  fs::path dir_;
  at::Tensor x_ = at::randn({300, 1001});  // more than one conversion buffer
};

TEST_F(WeightsTest, CastsEverySourceToTheAskedDtypeAsTorchDoes) {
  WriteSafetensors(dir_ / "model.safetensors", {{"f32", Raw(x_, "F32")},
                                                {"f16", Raw(x_.to(at::kHalf), "F16")},
                                                {"bf16", Raw(x_.to(at::kBFloat16), "BF16")}});
  Weights weights = Weights::Open(dir_, "model");
  const std::pair<const char*, at::ScalarType> sources[] = {
      {"f32", at::kFloat}, {"f16", at::kHalf}, {"bf16", at::kBFloat16}};
  for (const auto& [name, source] : sources) {
    for (at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
      const at::Tensor got = weights.Take(name, {300, 1001}, dtype);
      EXPECT_EQ(got.scalar_type(), dtype);
      EXPECT_TRUE(got.equal(x_.to(source).to(dtype))) << name;
    }
  }
}

TEST_F(WeightsTest, KnowsWhatWasNeverTaken) {
  WriteSafetensors(dir_ / "model.safetensors", {{"b", Raw(at::ones({2}), "F32")},
                                                {"a", Raw(at::ones({}), "F32")},
                                                {"c", Raw(at::ones({0, 4}), "F32")}});
  Weights weights = Weights::Open(dir_, "model");
  EXPECT_TRUE(weights.Contains("a"));
  EXPECT_FALSE(weights.Contains("d"));
  EXPECT_THAT(weights.Unused(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(weights.Take("a", {}, at::kFloat).item<float>(), 1);
  EXPECT_EQ(weights.Take("c", {0, 4}, at::kBFloat16).numel(), 0);
  EXPECT_THAT(weights.Unused(), ElementsAre("b"));
}

TEST_F(WeightsTest, NamesFileTensorAndShapes) {
  WriteSafetensors(dir_ / "model.safetensors", {{"a", Raw(at::ones({2, 3}), "F32")},
                                                {"i", Raw(at::ones({1}, at::kLong), "I64")}});
  Weights weights = Weights::Open(dir_, "model");
  EXPECT_THAT(Refusal([&] {
                weights.Take("a", {3, 2}, at::kFloat);
              }),
              HasSubstr("model.safetensors: tensor 'a': wanted shape [3, 2], came [2, 3]"));
  EXPECT_THAT(Refusal([&] { weights.Take("b", {1}, at::kFloat); }),
              HasSubstr("model.safetensors: tensor 'b' is missing"));
  EXPECT_THAT(Refusal([&] { weights.Take("i", {1}, at::kFloat); }),
              HasSubstr("dtype I64 is not supported; supported: F32, F16, BF16"));
}

TEST_F(WeightsTest, NothingThereIsNotFound) {
  EXPECT_THAT(Refusal([&] { Weights::Open(dir_, "model"); }, StatusCode::kNotFound),
              HasSubstr("model.safetensors.index.json"));
}

TEST_F(WeightsTest, ReadsShardsAsOne) {
  WriteSafetensors(dir_ / "m-1.safetensors", {{"a", Raw(at::ones({2}), "F32")}});
  WriteSafetensors(dir_ / "m-2.safetensors", {{"b", Raw(at::zeros({3}), "F32")}});
  WriteIndex(
      R"({"metadata":{"total_size":20},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  Weights weights = Weights::Open(dir_, "model");
  EXPECT_TRUE(weights.Take("a", {2}, at::kFloat).equal(at::ones({2})));
  EXPECT_TRUE(weights.Take("b", {3}, at::kFloat).equal(at::zeros({3})));
  EXPECT_THAT(weights.Unused(), ElementsAre());
}

TEST_F(WeightsTest, RefusesBrokenIndexes) {
  WriteSafetensors(dir_ / "m-1.safetensors", {{"a", Raw(at::ones({2}), "F32")}});
  WriteSafetensors(dir_ / "m-2.safetensors", {{"a", Raw(at::ones({2}), "F32")}});
  const std::pair<const char*, const char*> cases[] = {
      {R"({"weight_map":{"a":"../m-1.safetensors"}})", "not a bare *.safetensors name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "not a bare *.safetensors name"},
      {R"({"weight_map":{"a":".safetensors"}})", "not a bare *.safetensors name"},
      {R"({"weight_map":{"a":"m-1.safetensors\u0000.safetensors"}})", "not a bare"},
      {R"({"weight_map":{"a":1}})", "a shard name is not a string"},
      {R"({"weight_map":{}})", "wanted an object weight_map"},
      {R"({"weight_map":["a"]})", "wanted an object weight_map"},
      {R"({"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}})", "comes twice"},
      {R"({"weight_map":{"b":"m-1.safetensors"}})", "tensor 'b' is not in its shard"},
      {R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})", "tensor 'a' is also in"},
      {R"({"metadata":{"total_size":9},"weight_map":{"a":"m-1.safetensors"}})", "total_size is 9"},
      {R"({"metadata":{"total_size":"8"},"weight_map":{"a":"m-1.safetensors"}})",
       "wanted an integer"},
  };
  for (const auto& [index, message] : cases) {
    WriteIndex(index);
    EXPECT_THAT(OpenRefusal(), HasSubstr(message)) << index;
  }
  WriteIndex(R"({"weight_map":{"a":"absent.safetensors"}})");
  EXPECT_THAT(Refusal([&] { Weights::Open(dir_, "model"); }, StatusCode::kNotFound),
              HasSubstr("absent.safetensors: cannot be opened"));
}

TEST_F(WeightsTest, AFileCutOrReplacedWhileOpenIsAnErrorAndNotACrash) {
  const fs::path file = dir_ / "model.safetensors";
  WriteSafetensors(file, {{"a", Raw(x_, "F32")}, {"b", Raw(x_, "F32")}});
  Weights weights = Weights::Open(dir_, "model");
  EXPECT_TRUE(weights.Take("a", {300, 1001}, at::kFloat).equal(x_));
  fs::resize_file(file, fs::file_size(file) / 2);
  EXPECT_THAT(Refusal(
                  [&] {
                    weights.Take("b", {300, 1001}, at::kFloat);
                  },
                  StatusCode::kDataLoss),
              HasSubstr("model.safetensors: the file changed after it was opened"));
}

TEST_F(WeightsTest, ATruncatedFileIsRefusedOnOpening) {
  const fs::path file = dir_ / "model.safetensors";
  WriteSafetensors(file, {{"a", Raw(x_, "F32")}});
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_THAT(OpenRefusal(), HasSubstr("data reach past the end of the file: tensor 'a'"));
  fs::resize_file(file, 20);
  EXPECT_THAT(OpenRefusal(), HasSubstr("reaches past the end"));
}

TEST_F(WeightsTest, AnAbsurdSparseFileGivesAnErrorAndNotACrash) {
  const fs::path file = dir_ / "model.safetensors";
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}})";
  const uint64_t size = header.size();
  std::ofstream(file, std::ios::binary)
      << std::string(reinterpret_cast<const char*>(&size), 8) << header;
  std::error_code failed;
  fs::resize_file(file, 8 + header.size() + 4398046511104u, failed);
  if (failed) GTEST_SKIP() << "this file system has no sparse files of 4 TiB";
  Weights weights = Weights::Open(dir_, "model");
  EXPECT_THAT(Refusal([&] { weights.Take("a", {1099511627776}, at::kFloat); },
                      StatusCode::kResourceExhausted),
              HasSubstr("shape [1099511627776] is more than the machine"));
}

TEST_F(WeightsTest, DigestChangesWithNameSizeOrBytes) {
  const fs::path file = dir_ / "model.safetensors";
  const auto digest = [&](const at::Tensor& tensor) {
    WriteSafetensors(file, {{"a", Raw(tensor, "F32")}});
    return Weights::Open(dir_, "model").Digest();
  };
  const std::string first = digest(x_);
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(digest(x_), first);
  EXPECT_NE(digest(x_ + 1), first);
  EXPECT_NE(digest(x_.view({1001, 300})), first);
}

}  // namespace
}  // namespace denoised
