#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

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

  ModelFolder Folder(const std::string& variant = "") const {
    return ModelFolder(dir_, {variant, nullptr});
  }
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
    return Refusal([&] { Weights::Open(Folder(), "model"); });
  }

  fs::path dir_;
  at::Tensor x_ = at::randn({300, 1001});  // more than one conversion buffer
};

TEST_F(WeightsTest, CastsEverySourceToTheAskedDtypeAsTorchDoes) {
  WriteSafetensors(dir_ / "model.safetensors", {{"f32", Raw(x_, "F32")},
                                                {"f16", Raw(x_.to(at::kHalf), "F16")},
                                                {"bf16", Raw(x_.to(at::kBFloat16), "BF16")}});
  Weights weights = Weights::Open(Folder(), "model");
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

TEST_F(WeightsTest, GivesRowsOfATensorInAnyOrderAndAnyDtype) {
  const at::Tensor wide = at::randn({5, 70'001});  // rows that are converted in several pieces
  WriteSafetensors(dir_ / "model.safetensors", {{"f32", Raw(x_, "F32")},
                                                {"f16", Raw(x_.to(at::kHalf), "F16")},
                                                {"bf16", Raw(x_.to(at::kBFloat16), "BF16")},
                                                {"wide", Raw(wide, "F32")}});
  std::optional<Weights> weights = Weights::Open(Folder(), "model");
  const auto expect_rows = [](const WeightRows& rows, const at::Tensor& want) {
    const at::ScalarType dtype = rows.dtype;
    ASSERT_EQ(at::IntArrayRef({rows.rows, rows.columns}), want.sizes());
    for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
             {rows.rows - 1, 1}, {0, rows.rows}, {1, 3}, {2, 0}}) {
      const at::Tensor got = at::empty({count, rows.columns}, dtype);
      rows.read(first, count, got.data_ptr());
      EXPECT_TRUE(got.equal(want.to(dtype).narrow(0, first, count))) << first << " " << count;
    }
  };
  std::vector<std::pair<WeightRows, at::Tensor>> taken;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    taken.emplace_back(weights->TakeRows("f32", 300, 1001, dtype), x_);
    taken.emplace_back(weights->TakeRows("f16", 300, 1001, dtype), x_.to(at::kHalf));
    taken.emplace_back(weights->TakeRows("bf16", 300, 1001, dtype), x_.to(at::kBFloat16));
    taken.emplace_back(weights->TakeRows("wide", 5, 70'001, dtype), wide);
  }
  EXPECT_THAT(weights->Unused(), ElementsAre());
  EXPECT_THAT(Refusal([&] { weights->TakeRows("f32", 300, 1, at::kFloat); }),
              HasSubstr("tensor 'f32': wanted shape [300, 1], came [300, 1001]"));
  weights.reset();  // the rows keep their file open
  for (const auto& [rows, want] : taken) expect_rows(rows, want);
}

TEST_F(WeightsTest, ManyThreadsMayReadRowsAtOnce) {
  const at::Tensor x = at::randn({64, 40'000}).to(at::kHalf);
  WriteSafetensors(dir_ / "model.safetensors", {{"x", Raw(x, "F16")}});
  Weights weights = Weights::Open(Folder(), "model");
  const WeightRows rows = weights.TakeRows("x", 64, 40'000, at::kBFloat16);
  const at::Tensor out = at::empty({64, 40'000}, at::kBFloat16);
  std::vector<std::thread> readers;
  for (int64_t i = 0; i < 4; ++i) {
    readers.emplace_back([&, i] {
      for (int64_t row = i; row < 64; row += 4) rows.read(row, 1, out[row].data_ptr());
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_TRUE(out.equal(x.to(at::kBFloat16)));
}

TEST_F(WeightsTest, ReadsATensorThatIsTakenInSeveralTurns) {
  const at::Tensor x = at::randn({9, 1 << 20}).to(at::kHalf);
  WriteSafetensors(dir_ / "model.safetensors", {{"x", Raw(x, "F16")}});
  Weights weights = Weights::Open(Folder(), "model");
  EXPECT_TRUE(weights.Take("x", {9, 1 << 20}, at::kHalf).equal(x));
  EXPECT_TRUE(weights.Take("x", {9, 1 << 20}, at::kBFloat16).equal(x.to(at::kBFloat16)));
}

TEST_F(WeightsTest, RowsOfAFileThatBecameShorterAreAnError) {
  WriteSafetensors(dir_ / "model.safetensors", {{"x", Raw(x_, "F32")}});
  Weights weights = Weights::Open(Folder(), "model");
  const WeightRows rows = weights.TakeRows("x", 300, 1001, at::kBFloat16);
  fs::resize_file(dir_ / "model.safetensors", 500'000);
  const at::Tensor out = at::empty({300, 1001}, at::kBFloat16);
  rows.read(0, 100, out.data_ptr());
  EXPECT_TRUE(out.narrow(0, 0, 100).equal(x_.narrow(0, 0, 100).to(at::kBFloat16)));
  EXPECT_THAT(Refusal([&] { rows.read(100, 100, out.data_ptr()); }, StatusCode::kDataLoss),
              HasSubstr("model.safetensors"));
}

TEST_F(WeightsTest, KnowsWhatWasNeverTaken) {
  WriteSafetensors(dir_ / "model.safetensors", {{"b", Raw(at::ones({2}), "F32")},
                                                {"a", Raw(at::ones({}), "F32")},
                                                {"c", Raw(at::ones({0, 4}), "F32")}});
  Weights weights = Weights::Open(Folder(), "model");
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
  Weights weights = Weights::Open(Folder(), "model");
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
  EXPECT_THAT(Refusal([&] { Weights::Open(Folder(), "model"); }, StatusCode::kNotFound),
              HasSubstr("model.safetensors.index.json"));
}

TEST_F(WeightsTest, ReadsShardsAsOne) {
  WriteSafetensors(dir_ / "m-1.safetensors", {{"a", Raw(at::ones({2}), "F32")}});
  WriteSafetensors(dir_ / "m-2.safetensors", {{"b", Raw(at::zeros({3}), "F32")}});
  WriteIndex(
      R"({"metadata":{"total_size":20},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  Weights weights = Weights::Open(Folder(), "model");
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
      {R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})", "tensor 'a' is also in"},
  };
  for (const auto& [index, message] : cases) {
    WriteIndex(index);
    EXPECT_THAT(OpenRefusal(), HasSubstr(message)) << index;
  }
}

TEST_F(WeightsTest, WhatAnIndexSaysTooMuchIsAWarning) {
  WriteSafetensors(dir_ / "m-1.safetensors", {{"a", Raw(at::ones({2}), "F32")}});
  WriteSafetensors(dir_ / "m-2.safetensors", {{"b", Raw(at::ones({2}), "F32")}});
  const std::string map =
      R"("weight_map":{"a":"m-1.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}})";
  for (const char* metadata :
       {R"({"metadata":{"total_size":9},)", R"({"metadata":{"total_size":"16"},)"}) {
    WriteIndex(metadata + map);
    const ModelFolder folder = Folder();
    Weights weights = Weights::Open(folder, "model");
    EXPECT_TRUE(weights.Take("b", {2}, at::kFloat).equal(at::ones({2})));
    EXPECT_THAT(folder.TakeWarnings(),
                ElementsAre(HasSubstr("names 1 tensors that no shard has, the first is 'c'"),
                            HasSubstr("1 tensors that are in another shard than it says, the first "
                                      "is 'b'"),
                            HasSubstr("the shards hold 16 bytes")));
    EXPECT_THAT(Refusal([&] { weights.Take("c", {2}, at::kFloat); }),
                HasSubstr("tensor 'c' is missing: the index says that it is in m-2.safetensors"));
  }
  for (const char* metadata : {R"({"metadata":{"total_size":16.0},)", R"({"metadata":null,)",
                               R"({"metadata":{"total_size":null},)", R"({"metadata":[],)"}) {
    WriteIndex(metadata +
               std::string(R"("weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})"));
    const ModelFolder folder = Folder();
    Weights::Open(folder, "model");
    EXPECT_THAT(folder.TakeWarnings(), ElementsAre()) << metadata;
  }
}

TEST_F(WeightsTest, MissingShardsAreCounted) {
  WriteSafetensors(dir_ / "m-2.safetensors", {{"b", Raw(at::ones({2}), "F32")}});
  WriteIndex(R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors",
                               "c":"m-3.safetensors"}})");
  const auto open = [&] {
    return Refusal([&] { Weights::Open(Folder(), "model"); }, StatusCode::kNotFound);
  };
  EXPECT_THAT(open(), HasSubstr("m-1.safetensors: cannot be opened"));
  EXPECT_THAT(open(), HasSubstr("2 of 3 shards are missing: a download that is not complete"));
  std::ofstream(dir_ / "m-3.safetensors.incomplete") << "x";
  EXPECT_THAT(open(), HasSubstr("see " + (dir_ / "m-3.safetensors.incomplete").string()));
}

TEST_F(WeightsTest, MetadataMayBeNull) {
  const std::string header =
      R"({"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  const uint64_t size = header.size();
  std::ofstream(dir_ / "model.safetensors", std::ios::binary)
      << std::string(reinterpret_cast<const char*>(&size), 8) << header << std::string(4, '\0');
  EXPECT_TRUE(Weights::Open(Folder(), "model").Contains("a"));
}

// ---- which files

TEST_F(WeightsTest, TheIndexWinsOverAStaleSingleFile) {
  const std::string stem = "diffusion_pytorch_model";
  WriteSafetensors(dir_ / (stem + ".safetensors"), {{"a", Raw(at::zeros({2}), "F32")}});
  WriteSafetensors(dir_ / "m-1.safetensors", {{"a", Raw(at::ones({2}), "F32")}});
  std::ofstream(dir_ / (stem + ".safetensors.index.json"))
      << R"({"weight_map":{"a":"m-1.safetensors"}})";
  const ModelFolder folder = Folder();
  Weights weights = Weights::Open(folder, stem);
  EXPECT_TRUE(weights.Take("a", {2}, at::kFloat).equal(at::ones({2})));
  const auto warnings = folder.TakeWarnings();
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0],
              HasSubstr(stem + ".safetensors and " + stem + ".safetensors.index.json"));
  EXPECT_FALSE(folder.Seal().files.contains(stem + ".safetensors"));
}

TEST_F(WeightsTest, OfTransformersTheyMustNotBeBoth) {
  WriteSafetensors(dir_ / "model.safetensors", {{"a", Raw(at::zeros({2}), "F32")}});
  WriteIndex(R"({"weight_map":{"a":"m-1.safetensors"}})");
  const std::string refusal = OpenRefusal();
  EXPECT_THAT(refusal, HasSubstr("model.safetensors: lies beside model.safetensors.index.json"));
  EXPECT_THAT(refusal, HasSubstr("remove the one that is stale"));
}

TEST_F(WeightsTest, AVariantIsTakenWhereItIsAllThereIs) {
  for (const char* name : {"model.fp16.safetensors", "model.bf16.safetensors"}) {
    WriteSafetensors(dir_ / name, {{name, Raw(at::ones({2}), "F32")}});
  }
  const std::string both = OpenRefusal();
  EXPECT_THAT(both, HasSubstr("there are the variants bf16, fp16"));
  EXPECT_THAT(both, HasSubstr("--variant picks one"));
  EXPECT_TRUE(Weights::Open(Folder("bf16"), "model").Contains("model.bf16.safetensors"));
  EXPECT_THAT(Refusal([&] { Weights::Open(Folder("ema"), "model"); }),
              HasSubstr("bf16, fp16, and 'ema' is not one of them"));
  fs::remove(dir_ / "model.bf16.safetensors");
  const ModelFolder folder = Folder();
  EXPECT_TRUE(Weights::Open(folder, "model").Contains("model.fp16.safetensors"));
  EXPECT_THAT(folder.TakeWarnings(), ElementsAre(HasSubstr("only weights of variant fp16")));
  EXPECT_FALSE(folder.variant_taken());
}

TEST_F(WeightsTest, PlainFilesAreTakenUnlessTheVariantIsAskedFor) {
  for (const char* name : {"model.fp16.safetensors", "model.safetensors"}) {
    WriteSafetensors(dir_ / name, {{name, Raw(at::ones({2}), "F32")}});
  }
  EXPECT_TRUE(Weights::Open(Folder(), "model").Contains("model.safetensors"));
  const ModelFolder half = Folder("fp16");
  EXPECT_TRUE(Weights::Open(half, "model").Contains("model.fp16.safetensors"));
  EXPECT_TRUE(half.variant_taken());
  const ModelFolder other = Folder("bf16");
  EXPECT_TRUE(Weights::Open(other, "model").Contains("model.safetensors"));
  EXPECT_FALSE(other.variant_taken());
  EXPECT_THAT(other.variants_seen(), ElementsAre("fp16"));
  EXPECT_THAT(other.TakeWarnings(), ElementsAre(HasSubstr("no weights of variant bf16")));
}

TEST_F(WeightsTest, EverySpellingOfAShardedVariantIsKnown) {
  WriteSafetensors(dir_ / "model.fp16-00001-of-00001.safetensors",
                   {{"a", Raw(at::ones({2}), "F32")}});
  for (const char* index :
       {"model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json",
        "model.fp16.safetensors.index.json"}) {
    std::ofstream(dir_ / index)
        << R"({"weight_map":{"a":"model.fp16-00001-of-00001.safetensors"}})";
    EXPECT_TRUE(Weights::Open(Folder(), "model").Contains("a")) << index;
    EXPECT_TRUE(Weights::Open(Folder("fp16"), "model").Contains("a")) << index;
    fs::remove(dir_ / index);
  }
}

TEST_F(WeightsTest, SaysWhatLiesThereInsteadOfWeights) {
  const std::pair<const char*, const char*> cases[] = {
      {"model.bin", "there is only model.bin, a PyTorch pickle"},
      {"pytorch_model.bin", "only pytorch_model.bin, a PyTorch pickle.*save_pretrained"},
      {"model.gguf", "there is only model.gguf"},
      {"model-00001-of-00002.safetensors", "is a shard whose index is missing"},
      {"weights.safetensors", "there is weights.safetensors, under a name"},
      {"model.safetensors.part", "model.safetensors.part is a download that was not finished"},
  };
  for (const auto& [name, message] : cases) {
    std::ofstream(dir_ / name) << "x";
    EXPECT_THAT(Refusal([&] { Weights::Open(Folder(), "model"); }, StatusCode::kNotFound),
                testing::ContainsRegex(std::string("model.safetensors: no such file.*") + message));
    fs::remove(dir_ / name);
  }
}

TEST_F(WeightsTest, AFileCutOrReplacedWhileOpenIsAnErrorAndNotACrash) {
  const fs::path file = dir_ / "model.safetensors";
  WriteSafetensors(file, {{"a", Raw(x_, "F32")}, {"b", Raw(x_, "F32")}});
  Weights weights = Weights::Open(Folder(), "model");
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
  Weights weights = Weights::Open(Folder(), "model");
  EXPECT_THAT(Refusal([&] { weights.Take("a", {1099511627776}, at::kFloat); },
                      StatusCode::kResourceExhausted),
              HasSubstr("shape [1099511627776] is more than the machine"));
}

}  // namespace
}  // namespace denoised
