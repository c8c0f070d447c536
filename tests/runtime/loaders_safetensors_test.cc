#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/loaders/loose_file.h"
#include "runtime/loaders/safetensors.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

std::string ErrorOf(const std::function<void()>& act, StatusCode code) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "no error";
}

// What the reader says to a file of this header and this many data bytes.
std::string Verdict(const std::string& header, size_t data_bytes) {
  const std::string bytes = File(header, std::string(data_bytes, 'x'));
  return ErrorOf([&] { ParseSafetensorsHeader(bytes, bytes.size(), "f.safetensors"); },
                 StatusCode::kInvalidArgument);
}

struct BadHeader {
  const char* rule;
  std::string header;
  size_t data_bytes;
  const char* message;
};

std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

std::string Pair(const std::string& first, const std::string& second) {
  return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
         R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
}

std::vector<BadHeader> BadHeaders() {
  const std::string f32 = "\"F32\"";
  return {
      {"no JSON", "garbage", 0, "does not begin with '{'"},
      {"empty header", "", 0, "does not begin with '{'"},
      {"byte order mark", "\xEF\xBB\xBF" + One(f32, "[1]", "[0,4]"), 4, "does not begin with '{'"},
      {"form feed is no blank", "\f" + One(f32, "[1]", "[0,4]"), 4, "does not begin with '{'"},
      {"tail after the object", One(f32, "[1]", "[0,4]") + "x", 4, "not valid JSON"},
      {"NUL padding", One(f32, "[1]", "[0,4]") + std::string(3, '\0'), 4, "not valid JSON"},
      {"cut JSON", R"({"a":{"dtype":"F32")", 0, "not valid JSON"},
      {"list at the top", "[]", 0, "does not begin with '{'"},
      {"unknown dtype", One("\"F33\"", "[1]", "[0,4]"), 4, "unknown dtype F33: tensor 'a'"},
      {"dtype is a number", One("32", "[1]", "[0,4]"), 4, "a number where"},
      {"shape is a string", One(f32, "\"[1]\"", "[0,4]"), 4, "a string where"},
      {"shape is nested", One(f32, "[[1]]", "[0,4]"), 4, "a list where"},
      {"negative size", One(f32, "[-1]", "[0,4]"), 4, "a negative number"},
      {"minus zero", One(f32, "[-0]", "[0,0]"), 0, "a negative number"},
      {"exponent", One(f32, "[1e0]", "[0,4]"), 4, "not plain digits"},
      {"fraction", One(f32, "[1.0]", "[0,4]"), 4, "not plain digits"},
      {"digits beyond 64 bits", One(f32, "[18446744073709551616]", "[0,4]"), 4, "not plain digits"},
      {"size beyond 63 bits", One(f32, "[9223372036854775808]", "[0,4]"), 4,
       "does not fit 63 bits"},
      {"product wraps to zero", One(f32, "[4294967296,4294967296]", "[0,0]"), 0, "no whole 64-bit"},
      {"bits wrap to zero", One(f32, "[2,4611686018427387904]", "[0,0]"), 0, "no whole 64-bit"},
      {"rank above 8", One(f32, "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "rank above 8"},
      {"half a byte", One("\"F4\"", "[1]", "[0,1]"), 1, "no whole 64-bit number of bytes"},
      {"six bits", One("\"F6_E2M3\"", "[2]", "[0,2]"), 2, "no whole 64-bit number of bytes"},
      {"offsets do not match the shape", One(f32, "[2]", "[0,4]"), 4, "need 8 bytes"},
      {"one offset", One(f32, "[1]", "[0]"), 4, "not two numbers"},
      {"three offsets", One(f32, "[1]", "[0,4,8]"), 4, "not two numbers"},
      {"end before begin", One(f32, "[1]", "[4,0]"), 4, "end before begin"},
      {"past the end", One(f32, "[2]", "[0,8]"), 4, "past the end of the file"},
      {"tail bytes", One(f32, "[1]", "[0,4]"), 5, "1 bytes after the last tensor"},
      {"data without a tensor", "{}", 3, "3 bytes after the last tensor"},
      {"hole in front", One(f32, "[1]", "[4,8]"), 8, "leaves a hole"},
      {"hole between", Pair("[0,4]", "[5,9]"), 9, "leaves a hole before it: tensor 'b'"},
      {"overlap", Pair("[0,4]", "[3,7]"), 7, "overlaps"},
      {"the same range twice", Pair("[0,4]", "[0,4]"), 4, "overlaps"},
      {"missing field", R"({"a":{"dtype":"F32","shape":[1]}})", 4, "some are missing: tensor 'a'"},
      {"unknown field", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
       "unknown field"},
      {"field twice", R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
       "dtype comes twice: tensor 'a'"},
      {"name twice",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "name comes twice: tensor 'a'"},
      {"tensor is a list", R"({"a":[]})", 0, "a list where"},
      {"tensor is null", R"({"a":null})", 0, "null where"},
      {"tensor is true", R"({"a":true})", 0, "a boolean where"},
      {"metadata is a string", R"({"__metadata__":"x"})", 0, "a string where"},
      {"metadata value is a number", R"({"__metadata__":{"a":1}})", 0, "a number where"},
      {"metadata value is an object", R"({"__metadata__":{"a":{}}})", 0, "an object where"},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ comes twice"},
      {"metadata key twice", R"({"__metadata__":{"a":"","a":""}})", 0, "comes twice"},
      {"NUL in a name", R"({"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0,
       "not printable ASCII"},
      {"escape sequence in a name",
       R"({"\u001b[2J":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0,
       "not printable ASCII"},
      {"long name", "{\"" + std::string(513, 'n') + "\":{}}", 0, "at most 512"},
      {"lone surrogate", R"({"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0,
       "not valid JSON"},
      {"bad UTF-8", "{\"\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0,
       "not valid JSON"},
      {"deep nesting", "{\"a\":{\"shape\":" + std::string(100'000, '['), 0, "a list where"},
  };
}

TEST(SafetensorsHeader, RefusesEachBrokenRuleByItsName) {
  for (const BadHeader& bad : BadHeaders()) {
    const std::string verdict = Verdict(bad.header, bad.data_bytes);
    EXPECT_THAT(verdict, HasSubstr(bad.message)) << bad.rule;
    EXPECT_THAT(verdict, HasSubstr("f.safetensors: ")) << bad.rule;
  }
}

TEST(SafetensorsHeader, RefusesSizesThatCannotBe) {
  const auto verdict = [](const std::string& head, uint64_t file_size) {
    return ErrorOf([&] { ParseSafetensorsHeader(head, file_size, "f"); },
                   StatusCode::kInvalidArgument);
  };
  const auto prefix = [](uint64_t n) { return std::string(reinterpret_cast<char*>(&n), 8); };
  EXPECT_THAT(verdict("", 0), HasSubstr("header too small"));
  EXPECT_THAT(verdict("1234567", 7), HasSubstr("header too small"));
  EXPECT_THAT(verdict(prefix(100'000'001), uint64_t{1} << 40), HasSubstr("too large"));
  EXPECT_THAT(verdict(prefix(UINT64_MAX), 100), HasSubstr("too large"));
  EXPECT_THAT(verdict(prefix(93), 100), HasSubstr("past the end"));
  EXPECT_THAT(verdict(prefix(20'000'000), 100'000'000), HasSubstr("eighth"));
  EXPECT_THAT(verdict(prefix(50) + "{}", 1000), HasSubstr("header is cut"));
}

TEST(SafetensorsHeader, RefusesMoreTensorsThanTheLimit) {
  SafetensorsLimits limits;
  limits.max_tensors = 2;
  std::string header = "{";
  for (const char* name : {"a", "b", "c"}) {
    header += (header.size() > 1 ? "," : "") + std::string("\"") + name +
              R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  const std::string bytes = File(header + "}", "");
  EXPECT_THAT(ErrorOf([&] { ParseSafetensorsHeader(bytes, bytes.size(), "f", limits); },
                      StatusCode::kInvalidArgument),
              HasSubstr("more than 2 tensors"));
}

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  const std::string header =
      "\n\t {\"__metadata__\":{\"k\":\"v\"},"
      R"("z":{"dtype":"F32","shape":[],"data_offsets":[2,6]},)"
      R"("empty":{"dtype":"BF16","shape":[0,3],"data_offsets":[2,2]},)"
      R"("b":{"data_offsets":[0,2],"shape":[1],"dtype":"F16"}} )"
      "\r\n";
  const std::string bytes = File(header, "123456");
  const SafetensorsHeader read = ParseSafetensorsHeader(bytes, bytes.size(), "f");
  ASSERT_EQ(read.tensors.size(), 3u);
  EXPECT_EQ(read.tensors[0].name, "b");
  EXPECT_EQ(read.tensors[1].name, "empty");
  EXPECT_EQ(read.tensors[1].shape, (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(read.tensors[2].shape, std::vector<int64_t>{});
  EXPECT_EQ(read.tensors[2].begin, 8 + header.size() + 2);
  EXPECT_EQ(read.metadata.at("k"), "v");
}

TEST(SafetensorsFile, RoundTripsThroughTheWriter) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / "round_trip.safetensors";
  const std::map<std::string, RawTensor> tensors = {
      {"u8", {"U8", {3}, "abc"}},
      {"f32", {"F32", {1, 2}, "01234567"}},
      {"none", {"F64", {0}, ""}},
  };
  WriteSafetensors(path, tensors, {{"format", "pt"}});
  const auto read = ReadSafetensors(OpenLooseFile(path));
  ASSERT_EQ(read.size(), 3u);
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.at(name).dtype, tensor.dtype);
    EXPECT_EQ(read.at(name).shape, tensor.shape);
    EXPECT_EQ(read.at(name).data, tensor.data);
  }
}

TEST(SafetensorsFile, WriterRefusesDataThatDoNotFit) {
  const auto write = [](RawTensor tensor) {
    return ErrorOf([&] { SerializeSafetensors({{"a", tensor}}); }, StatusCode::kInvalidArgument);
  };
  EXPECT_THAT(write({"F32", {2}, "1234"}), HasSubstr("tensor 'a'"));
  EXPECT_THAT(write({"F99", {1}, "1234"}), HasSubstr("unknown dtype"));
  EXPECT_THAT(write({"F32", {-1}, "1234"}), HasSubstr("negative size"));
}

TEST(SafetensorsFile, RefusesFoldersFifosAndAbsentFiles) {
  const std::filesystem::path dir = testing::TempDir();
  const std::filesystem::path fifo = dir / ("fifo." + std::to_string(getpid()));
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(ErrorOf([&] { ReadSafetensors(OpenLooseFile(dir)); }, StatusCode::kInvalidArgument),
              HasSubstr("wanted a regular file"));
  EXPECT_THAT(ErrorOf([&] { ReadSafetensors(OpenLooseFile(fifo)); }, StatusCode::kInvalidArgument),
              HasSubstr("wanted a regular file"));
  EXPECT_THAT(ErrorOf([&] { ReadSafetensors(OpenLooseFile(dir / "absent.safetensors")); },
                      StatusCode::kNotFound),
              HasSubstr("absent.safetensors"));
  unlink(fifo.c_str());
}

TEST(SafetensorsFile, WriteNamesAPathThatCannotBeWritten) {
  EXPECT_THAT(
      ErrorOf([] { WriteWholeFile("/proc/nowhere/x.mp4", "x"); }, StatusCode::kFailedPrecondition),
      HasSubstr("/proc/nowhere/x.mp4: cannot be written: No such file"));
}

// Mutations of honest files: each is read or refused with an Error, whatever the bytes are.
std::string Mutate(std::string bytes, std::mt19937& random) {
  const std::string alphabet = "{}[]\":,0123456789-eE.\\u nft\x00\xff";
  const int edits = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < edits && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size();
    switch (random() % 5) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = alphabet[random() % alphabet.size()];
        break;
      case 2:
        bytes.erase(at, 1 + random() % 8);
        break;
      case 3:
        bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 24));
        break;
      default:
        bytes.resize(at);
        break;
    }
  }
  return bytes;
}

TEST(SafetensorsFuzz, MutatedFilesAreReadOrRefusedButNeverCrash) {
  std::mt19937 random(20261122);
  const std::string honest =
      SerializeSafetensors({{"blocks.0.weight", {"F32", {2, 2}, std::string(16, 'w')}},
                            {"blocks.0.bias", {"BF16", {3}, std::string(6, 'b')}},
                            {"scalar", {"I64", {}, std::string(8, 's')}}},
                           {{"format", "pt"}});
  int refused = 0;
  constexpr int kRounds = 20'000;
  for (int i = 0; i < kRounds; ++i) {
    const std::string bytes = Mutate(honest, random);
    try {
      for (const SafetensorsEntry& entry :
           ParseSafetensorsHeader(bytes, bytes.size(), "fuzz").tensors) {
        ASSERT_LE(entry.begin, entry.end);
        ASSERT_LE(entry.end, bytes.size());
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), StatusCode::kInvalidArgument);
      ++refused;
    }
  }
  EXPECT_GT(refused, kRounds / 2);
}

TEST(JsonFuzz, MutatedConfigsAreReadOrRefusedButNeverCrash) {
  std::mt19937 random(3);
  const std::string honest =
      R"({"_class_name":"WanTransformer3DModel","patch_size":[1,2,2],"eps":1e-06,)"
      R"("num_layers":2,"qk_norm":"rms_norm_across_heads","image_dim":null,"a":{"b":[true,false]}})";
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    try {
      const ConfigReader config(ParseJsonStrict(Mutate(honest, random), "fuzz.json"), "fuzz.json");
      config.Int("num_layers", 1, 1, 1000);
      config.Ints("patch_size", {});
      config.Double("eps", 1e-6);
      config.Bool("a", true);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), StatusCode::kInvalidArgument);
      ++refused;
    }
  }
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace denoised
