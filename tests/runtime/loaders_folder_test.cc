// ModelFolder and what it stands on: digests, SHA256SUMS, the cache of digests, what lies in a
// file's place.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "backends/error.h"
#include "runtime/loaders/checksums.h"
#include "runtime/loaders/digest_cache.h"
#include "runtime/loaders/loose_file.h"
#include "runtime/loaders/model_folder.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
namespace fs = std::filesystem;

std::string ErrorOf(const std::function<void()>& act,
                    StatusCode code = StatusCode::kInvalidArgument) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.reason() + ": " + error.what();
  }
  return "no error";
}

// ---- SHA-256

std::string Digest(std::string_view bytes, size_t piece, Sha256Kernel kernel) {
  Sha256 hash(kernel);
  for (size_t i = 0; i < bytes.size(); i += piece) hash.Update(bytes.substr(i, piece));
  return ToHex(hash.Finish());
}

TEST(Sha256, MatchesPublishedVectors) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  for (Sha256Kernel kernel : {Sha256Kernel::kScalar, Sha256Kernel::kAuto}) {
    EXPECT_EQ(Digest(std::string(1'000'000, 'a'), 1000, kernel),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST(Sha256, TheInstructionsGiveWhatPlainCodeGives) {
  if (!HasShaInstructions()) GTEST_SKIP() << "this CPU has no SHA instructions";
  std::mt19937 random(5);
  std::string text;
  for (size_t size = 0; size < 400; ++size, text += static_cast<char>(random())) {
    const std::string whole = Digest(text, 1000, Sha256Kernel::kScalar);
    for (size_t piece : {1, 7, 63, 64, 65, 200}) {
      ASSERT_EQ(Digest(text, piece, Sha256Kernel::kShaNi), whole) << size << ' ' << piece;
      ASSERT_EQ(Digest(text, piece, Sha256Kernel::kScalar), whole) << size << ' ' << piece;
    }
  }
}

// ---- SHA256SUMS

const std::string kOnes(64, '1');
const std::string kAs(64, 'a');

TEST(ParseChecksums, ReadsEveryFormThatTheToolWrites) {
  const std::string text = "# a remark\r\n\n" + kOnes + "  model_index.json\n" + kOnes +
                           " *vae/config.json\r\n" + std::string(64, 'A') + "  ./a//b c.txt\n\\" +
                           kOnes + "  new\\nline\\\\\nSHA256 (tag (1).bin) = " + kAs + "\n" +
                           kOnes + "  last";
  EXPECT_THAT(ParseChecksums(text, "SHA256SUMS"),
              ElementsAre(Pair("a/b c.txt", kAs), Pair("last", kOnes),
                          Pair("model_index.json", kOnes), Pair("new\nline\\", kOnes),
                          Pair("tag (1).bin", kAs), Pair("vae/config.json", kOnes)));
}

TEST(ParseChecksums, RefusesWhatItDoesNotKnowByLine) {
  const std::pair<std::string, const char*> cases[] = {
      {"x", "S: line 1: wanted 64 hex digits"},
      {"\n" + kOnes + " x", "S: line 2: wanted"},
      {kOnes + "\tx", "line 1: wanted"},
      {kOnes + "  ", "line 1: wanted"},
      {std::string(64, 'g') + "  x", "line 1: wanted"},
      {kOnes + "1  x", "line 1: wanted"},
      {"SHA256 (x) = 11", "line 1: wanted"},
      {"SHA512 (x) = " + kOnes, "line 1: wanted"},
      {kOnes + "  ../x", "line 1: the path leads out of the folder: ../x"},
      {kOnes + "  a/../../x", "leads out of the folder"},
      {kOnes + "  /etc/passwd", "leads out of the folder"},
      {kOnes + "  .", "leads out of the folder"},
      {kOnes + "  x\n" + kAs + "  ./x", "line 2: x has two digests"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(ErrorOf([&] { ParseChecksums(text, "S"); }), HasSubstr(message)) << text;
  }
  EXPECT_EQ(ParseChecksums(kOnes + "  x\n" + kOnes + "  x\n", "S").size(), 1u);
}

// ---- folders

class ModelFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) /
           (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + "." +
            std::to_string(getpid()));
    fs::create_directories(dir_ / "vae");
    Write("model_index.json", "{}");
    Write("vae/config.json", "{\"a\": 1}");
    Write("vae/w.safetensors", weights_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  // Writes other bytes of the same length and puts the modification time back.
  void WriteInSecret(const std::string& name, const std::string& bytes) {
    struct stat before;
    ASSERT_EQ(stat((dir_ / name).c_str(), &before), 0);
    Write(name, bytes);
    const timespec times[] = {before.st_atim, before.st_mtim};
    ASSERT_EQ(utimensat(AT_FDCWD, (dir_ / name).c_str(), times, 0), 0);
  }
  static Manifest ReadAll(const ModelFolder& folder) {
    folder.Read("model_index.json", 100);
    folder.Sub("vae").Read("config.json", 100);
    folder.Sub("vae").OpenWeights("w.safetensors");
    return folder.Seal();
  }
  Manifest ReadAll() { return ReadAll(ModelFolder(dir_)); }

  fs::path dir_;
  std::string weights_ = std::string(3 << 20, 'w') + "end";
};

TEST_F(ModelFolderTest, EntersEveryFileThatIsReadWithItsPlainSha256) {
  Write("vae/unread.json", "{}");
  const Manifest manifest = ReadAll();
  ASSERT_EQ(manifest.files.size(), 3u);
  const ManifestEntry& weights = manifest.files.at("vae/w.safetensors");
  EXPECT_EQ(weights.size, weights_.size());
  EXPECT_EQ(weights.sha256, Sha256Hex(weights_));
  EXPECT_TRUE(weights.weights);
  EXPECT_EQ(manifest.files.at("vae/config.json").sha256, Sha256Hex("{\"a\": 1}"));
  EXPECT_FALSE(manifest.files.at("vae/config.json").weights);
  EXPECT_TRUE(manifest.files.contains("model_index.json"));
}

TEST_F(ModelFolderTest, AnyByteAndAnyNameIsInTheModelDigest) {
  const Manifest before = ReadAll();
  EXPECT_EQ(ReadAll().ModelDigest(), before.ModelDigest());
  Write("vae/config.json", "{\"a\": 2}");
  const Manifest config = ReadAll();
  EXPECT_NE(config.ModelDigest(), before.ModelDigest());
  EXPECT_EQ(config.WeightsDigest(), before.WeightsDigest());
  // One byte in the middle, size and modification time as they were.
  weights_[weights_.size() / 2] ^= 1;
  WriteInSecret("vae/w.safetensors", weights_);
  const Manifest weights = ReadAll();
  EXPECT_NE(weights.ModelDigest(), config.ModelDigest());
  EXPECT_NE(weights.WeightsDigest(), config.WeightsDigest());
  Manifest renamed = weights;
  renamed.files["w.safetensors"] = weights.files.at("vae/w.safetensors");
  renamed.files.erase("vae/w.safetensors");
  EXPECT_NE(renamed.WeightsDigest(), weights.WeightsDigest());
}

TEST_F(ModelFolderTest, ManyFilesAreHashedAtOnceAndAllOfThemRight) {
  std::map<std::string, std::string> wanted;
  for (int i = 0; i < 40; ++i) {
    const std::string name = "shard-" + std::to_string(i);
    const std::string bytes(1 + i * 77'777, static_cast<char>('a' + i % 26));
    Write(name, bytes);
    wanted[name] = Sha256Hex(bytes);
  }
  const ModelFolder folder(dir_);
  for (const auto& [name, sha256] : wanted) folder.OpenWeights(name);
  const Manifest manifest = folder.Seal();
  for (const auto& [name, sha256] : wanted) {
    EXPECT_EQ(manifest.files.at(name).sha256, sha256) << name;
  }
}

TEST_F(ModelFolderTest, LettingGoOfAFolderDoesNotWaitForItsDigests) {
  for (int i = 0; i < 20; ++i) {
    const std::string name = "big-" + std::to_string(i);
    Write(name, "x");
    fs::resize_file(dir_ / name, 1 << 30);  // 20 GiB of holes
  }
  const auto start = std::chrono::steady_clock::now();
  {
    const ModelFolder folder(dir_);
    for (int i = 0; i < 20; ++i) folder.OpenWeights("big-" + std::to_string(i));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST_F(ModelFolderTest, AFileThatChangesWhileItIsReadIsAnError) {
  const ModelFolder folder(dir_);
  folder.Read("model_index.json", 100);
  Write("model_index.json", "[]");
  EXPECT_THAT(ErrorOf([&] { folder.Read("model_index.json", 100); }, StatusCode::kDataLoss),
              HasSubstr("model_index.json: the file changed while the model was loaded"));
}

TEST_F(ModelFolderTest, WeightsThatChangeAfterTheirDigestAreAnErrorToo) {
  DigestCache cache(dir_ / "digests");
  const ModelFolder folder(dir_, {"", &cache});
  folder.OpenWeights("vae/w.safetensors");
  Write("vae/w.safetensors", weights_ + "more");
  EXPECT_THAT(ErrorOf([&] { folder.Seal(); }, StatusCode::kDataLoss),
              HasSubstr("vae/w.safetensors"));
}

TEST_F(ModelFolderTest, ChecksumsBesideTheModelHold) {
  Write("SHA256SUMS", Sha256Hex("{}") + "  model_index.json\n" + Sha256Hex(weights_) +
                          " *./vae/w.safetensors\n" + kOnes + "  README.md\n");
  const ModelFolder folder(dir_);
  const Manifest manifest = ReadAll(folder);
  EXPECT_TRUE(folder.TakeWarnings().empty());
  EXPECT_FALSE(manifest.files.contains("SHA256SUMS"));
}

TEST_F(ModelFolderTest, AMismatchNamesTheFileAndBothDigests) {
  Write("SHA256SUMS", kOnes + "  vae/w.safetensors\n");
  const std::string weights = ErrorOf([&] { ReadAll(); });
  EXPECT_THAT(weights, HasSubstr("CHECKSUM_MISMATCH: "));
  EXPECT_THAT(weights, HasSubstr("vae/w.safetensors: SHA256SUMS says " + kOnes));
  EXPECT_THAT(weights, HasSubstr("the file has " + Sha256Hex(weights_)));
  Write("SHA256SUMS", kOnes + "  model_index.json\n");
  EXPECT_THAT(ErrorOf([&] { ReadAll(); }), HasSubstr("model_index.json: SHA256SUMS says 1111"));
}

TEST_F(ModelFolderTest, ADamagedFileThatFailsAsSomethingElseIsExplained) {
  Write("SHA256SUMS", kOnes + "  model_index.json\n" + kOnes + "  vae/w.safetensors\n");
  const ModelFolder folder(dir_);
  const Error plain(StatusCode::kInvalidArgument, "not valid JSON", "f", "");
  EXPECT_STREQ(folder.Explain(plain).what(), "not valid JSON");
  folder.Read("model_index.json", 100);
  const Error explained = folder.Explain(plain);
  EXPECT_THAT(explained.what(), testing::StartsWith("not valid JSON; "));
  EXPECT_THAT(explained.what(), HasSubstr("model_index.json: SHA256SUMS says " + kOnes));
  EXPECT_EQ(explained.reason(), "CHECKSUM_MISMATCH");
  EXPECT_EQ(folder.Explain(Error(StatusCode::kNotFound, "x", "", "PICKLE")).reason(), "PICKLE");
  EXPECT_STREQ(folder.Explain(explained).what(), explained.what());
}

TEST_F(ModelFolderTest, AListedFileThatALoaderLooksForMustBeThere) {
  const std::string list = kOnes + "  denoised.json\n" + kOnes + "  README.md\n";
  Write("SHA256SUMS", list);
  const ModelFolder folder(dir_);
  EXPECT_THAT(ErrorOf([&] { folder.Has("denoised.json"); }, StatusCode::kNotFound),
              HasSubstr("denoised.json: SHA256SUMS lists it, and it is not there"));
  EXPECT_FALSE(folder.Has("other.json"));
  EXPECT_TRUE(folder.Has("model_index.json"));
}

TEST_F(ModelFolderTest, AListThatChecksNothingIsSaidAloud) {
  Write("SHA256SUMS", kOnes + "  elsewhere/model_index.json\n");
  const ModelFolder folder(dir_);
  ReadAll(folder);
  EXPECT_THAT(folder.TakeWarnings(), ElementsAre(HasSubstr("nothing was checked")));
  Write("SHA256SUMS", kOnes + "  ../vae/config.json\n");
  EXPECT_THAT(ErrorOf([&] { ReadAll(); }), HasSubstr("SHA256SUMS: line 1: the path leads out"));
}

TEST_F(ModelFolderTest, SaysWhatLiesInAFilesPlace) {
  const std::pair<std::string, const char*> cases[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:" + kOnes + "\nsize 15723320\n",
       "LFS_POINTER: .*is a pointer of Git LFS.*15723320 bytes, sha256:111.*git lfs pull"},
      {"", "INCOMPLETE_DOWNLOAD: .*is empty"},
      {"\n<!DOCTYPE HTML><p>Please log in", "WEB_PAGE: .*is a web page"},
      {"<?xml version=\"1.0\"?><Error>AccessDenied", "WEB_PAGE: .*is a web page"},
      {"PK\x03\x04" + std::string(100, 'x'), "PICKLE: .*PyTorch pickle"},
      {"\x80\x02\x8a\x0al\xfc\x9c" + std::string(100, 'x'), "PICKLE: .*PyTorch pickle"},
  };
  for (const auto& [bytes, message] : cases) {
    Write("vae/w.safetensors", bytes);
    const std::string error = ErrorOf([&] { ReadAll(); });
    EXPECT_THAT(error, testing::ContainsRegex(message));
    EXPECT_THAT(error, HasSubstr("vae/w.safetensors: "));
  }
  // The size of a header may begin with any byte.
  Write("vae/w.safetensors", std::string("\x80\x04\0\0\0\0\0\0{", 9) + std::string(2000, ' '));
  EXPECT_EQ(ErrorOf([&] { ReadAll(); }), "no error");
  Write("model_index.json", cases[0].first);
  EXPECT_THAT(ErrorOf([&] { ReadAll(); }), HasSubstr("model_index.json: is a pointer of Git LFS"));
}

TEST_F(ModelFolderTest, HalvesOfADownloadAreNamed) {
  const auto read = [&] { return ErrorOf([&] { ReadAll(); }, StatusCode::kNotFound); };
  fs::remove(dir_ / "vae/config.json");
  EXPECT_THAT(read(), HasSubstr("vae/config.json: cannot be opened: No such file"));
  fs::create_symlink("../../blobs/0123", dir_ / "vae/config.json");
  EXPECT_THAT(read(), HasSubstr("INCOMPLETE_DOWNLOAD: "));
  EXPECT_THAT(read(), HasSubstr("it is a link to ../../blobs/0123, which is not there"));
  fs::remove(dir_ / "vae/config.json");
  Write("vae/config.json.incomplete", "{");
  EXPECT_THAT(read(), HasSubstr("config.json.incomplete is a download that was not finished"));
  fs::remove(dir_ / "vae/config.json.incomplete");
  fs::create_directories(dir_ / ".cache/huggingface/download/vae");
  Write(".cache/huggingface/download/vae/abc.incomplete", "{");
  EXPECT_THAT(read(), HasSubstr("download/vae/abc.incomplete is a download that was not finished"));
  Write("vae/config.json", "{}");
  Write("vae/w.safetensors.aria2", "x");
  EXPECT_THAT(ErrorOf([&] { ReadAll(); }), HasSubstr("its .aria2 file says"));
}

// ---- the cache of digests

class DigestCacheTest : public ModelFolderTest {
 protected:
  // As if a server started: what it finds, it hashes or knows.
  Manifest Start() {
    DigestCache cache(dir_ / "digests");
    const Manifest manifest = ReadAll(ModelFolder(dir_, {"", &cache}));
    cache.Save();
    return manifest;
  }
  std::string Kept() {
    std::ifstream file(dir_ / "digests");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // A file that was just written is not kept: wait until its time is past.
  void LetItSettle() {
    const fs::path file = dir_ / "vae/w.safetensors";
    DigestCache cache(dir_ / "probe");
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (std::chrono::steady_clock::now() < end) {
      const FileStamp stamp = OpenLooseFile(file).stamp();
      cache.Put("x", stamp, kOnes);
      if (cache.Find("x", stamp)) return;
      std::this_thread::yield();
    }
    FAIL() << "the file never settled";
  }
};

TEST_F(DigestCacheTest, KnowsAFileAgainByPathAndStamp) {
  LetItSettle();
  const Manifest first = Start();
  EXPECT_THAT(Kept(), HasSubstr(Sha256Hex(weights_)));
  // Another digest under the same stamp shows that the second start takes the kept one.
  std::string kept = Kept();
  kept.replace(kept.find(Sha256Hex(weights_)), 64, kOnes);
  Write("digests", kept);
  EXPECT_EQ(Start().files.at("vae/w.safetensors").sha256, kOnes);
  // Only weights are kept; what is small is always read and hashed.
  EXPECT_EQ(first.files.at("vae/config.json").sha256, Sha256Hex("{\"a\": 1}"));
  EXPECT_EQ(std::count(kept.begin(), kept.end(), '\n'), 2);
}

TEST_F(DigestCacheTest, AChangedFileIsHashedAgainEvenWithItsTimeSetBack) {
  LetItSettle();
  Start();
  weights_[1000] ^= 1;
  WriteInSecret("vae/w.safetensors", weights_);
  EXPECT_EQ(Start().files.at("vae/w.safetensors").sha256, Sha256Hex(weights_));
}

TEST_F(DigestCacheTest, BrokenLinesMeanNothing) {
  LetItSettle();
  Start();
  for (const std::string& text :
       {std::string("denoised digests 2\n"), std::string("\0\1\2", 3),
        "denoised digests 1\n" + kOnes + " 1 2\n" + kOnes + " a b c d e /x\n\n",
        std::string("denoised digests 1\nzz 1 2 3 4 5 /x\n")}) {
    Write("digests", text);
    EXPECT_EQ(Start().files.at("vae/w.safetensors").sha256, Sha256Hex(weights_));
  }
}

TEST_F(DigestCacheTest, WhatIsFreshOrGoneIsNotKept) {
  const auto now = [] {
    return std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()).count();
  };
  const std::string path = (dir_ / "vae/w.safetensors").string();
  FileStamp stamp;
  for (bool is_fresh = false; !is_fresh;) {  // again where the machine took too long
    DigestCache cache(dir_ / "digests");
    stamp = {1, 2, 3, now(), now()};
    cache.Put(path, stamp, kOnes);
    is_fresh = now() - stamp.changed_ns < 50'000'000;
    if (is_fresh) {
      EXPECT_FALSE(cache.Find(path, stamp));
    }
  }
  DigestCache cache(dir_ / "digests");
  stamp.changed_ns = now() - 1'000'000'000;
  cache.Put("/gone/w.safetensors", stamp, kOnes);
  cache.Put(path, stamp, kOnes);
  cache.Save();
  EXPECT_THAT(Kept(), HasSubstr("vae/w.safetensors\n"));
  EXPECT_EQ(Kept().find("/gone"), std::string::npos);
}

}  // namespace
}  // namespace denoised
