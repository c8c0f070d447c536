// Sizes as people write them, and the limits that control groups set, at every level.
#include "runtime/engine/memory_budget.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "backends/error.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kKiB = 1024, kMiB = kKiB * kKiB, kGiB = kKiB * kMiB;

TEST(ParseBytes, TakesSizesAsPeopleWriteThem) {
  EXPECT_EQ(ParseBytes("8GiB"), 8 * kGiB);
  EXPECT_EQ(ParseBytes("1500MiB"), 1500 * kMiB);
  EXPECT_EQ(ParseBytes("1.5GiB"), kGiB + kGiB / 2);
  EXPECT_EQ(ParseBytes("2 GB"), 2'000'000'000);
  EXPECT_EQ(ParseBytes("2g"), 2 * kGiB);
  EXPECT_EQ(ParseBytes("64K"), 64 * kKiB);
  EXPECT_EQ(ParseBytes("1TiB"), kGiB * 1024);
  EXPECT_EQ(ParseBytes("12345678B"), 12345678);
}

TEST(ParseBytes, RefusesWhatIsNoSize) {
  for (const char* text : {"", "GiB", "8", "-1GiB", "8GiBs", "8 G iB", "1e9GiB", "nan GiB",
                           "infGiB", "8QiB", "0x10MiB", "9999999999999TiB", "8,5GiB"}) {
    EXPECT_FALSE(ParseBytes(text)) << text;
  }
}

TEST(BytesText, IsShort) {
  EXPECT_EQ(BytesText(kGiB + kGiB / 2), "1.50 GiB");
  EXPECT_EQ(BytesText(64 * kMiB), "64 MiB");
}

// A root folder with a proc and control groups of its own.
class Root {
 public:
  Root() : path_(fs::path(testing::TempDir()) / ("budget-" + std::to_string(getpid()))) {
    fs::remove_all(path_);
    Put("proc/meminfo", "MemTotal:       25165824 kB\nMemFree:  1 kB\n");  // 24 GiB
  }
  ~Root() { fs::remove_all(path_); }
  void Put(const std::string& file, const std::string& text) const {
    fs::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
  }
  void Version1(const std::string& group, const std::string& mount_root = "/") const {
    Put("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:" + group + "\n0::/\n");
    Put("proc/self/mountinfo", "30 29 0:26 / /proc rw - proc proc rw\n31 29 0:27 " + mount_root +
                                   " /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup "
                                   "rw,cpu,memory\n");
  }
  void Version2(const std::string& group, const std::string& mount_root = "/") const {
    Put("proc/self/cgroup", "0::" + group + "\n");
    Put("proc/self/mountinfo",
        "31 29 0:27 " + mount_root + " /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
  }
  const fs::path& path() const { return path_; }

 private:
  const fs::path path_;
};

TEST(CgroupMemoryLimit, OfVersion1IsTheSmallestOfAllLevels) {
  const Root root;
  root.Version1("/a/b");
  root.Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root.Put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1572864000\n");
  root.Put("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(CgroupMemoryLimit(root.path()), 1572864000);
  root.Put("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "1000000\n");
  EXPECT_EQ(CgroupMemoryLimit(root.path()), 1000000);
}

TEST(CgroupMemoryLimit, OfVersion2IsTheSmallestOfAllLevels) {
  const Root root;
  root.Version2("/a/b");
  root.Put("sys/fs/cgroup/a/memory.max", "3000000000\n");
  root.Put("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(CgroupMemoryLimit(root.path()), 3000000000);
  root.Put("sys/fs/cgroup/a/memory.max", "max\n");
  EXPECT_FALSE(CgroupMemoryLimit(root.path()));
}

TEST(CgroupMemoryLimit, OfAContainerIsAtTheMountsRoot) {
  const Root root;
  for (const std::string mount_root : {"/docker/c0ffee", "/"}) {
    root.Version1("/docker/c0ffee", mount_root);
    root.Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1500000000\n");
    EXPECT_EQ(CgroupMemoryLimit(root.path()), 1500000000) << mount_root;
  }
}

TEST(CgroupMemoryLimit, IsNoneWhereNothingSaysOne) {
  const Root root;
  EXPECT_FALSE(CgroupMemoryLimit(root.path()));
  root.Put("proc/self/cgroup", "nonsense\n::\n");
  root.Put("proc/self/mountinfo", "nonsense - \n - cgroup2\n");
  EXPECT_FALSE(CgroupMemoryLimit(root.path()));
}

TEST(MemoryBudget, AutoIsTheSmallerOfMachineAndGroupLessAReserveAndReadAnewEachTime) {
  const Root root;
  const MemoryBudget budget("auto", root.path());
  EXPECT_EQ(budget.Now()->bytes, 24 * kGiB - 24 * kGiB / 16);
  root.Version2("/a");
  root.Put("sys/fs/cgroup/a/memory.max", "536870912\n");
  EXPECT_EQ(budget.Now()->bytes, 512 * kMiB - 64 * kMiB);
  EXPECT_NE(budget.Now()->source.find("512 MiB"), std::string::npos);
}

TEST(MemoryBudget, ASizeIsTakenAsItIsAndNoneIsNoLimit) {
  const Root root;
  EXPECT_EQ(MemoryBudget("1500MiB", root.path()).Now()->bytes, 1500 * kMiB);
  EXPECT_FALSE(MemoryBudget("none", root.path()).Now());
  EXPECT_FALSE(MemoryBudget("0", root.path()).Now());
}

TEST(MemoryBudget, RefusesWhatIsNoSizeByName) {
  for (const char* text : {"", "lots", "8", "12KiB", "-1GiB"}) {
    try {
      MemoryBudget budget{text};
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "max_memory") << text;
    }
  }
}

TEST(ResidentBytes, IsWhatThisProcessHolds) { EXPECT_GT(ResidentBytes(), kMiB); }

}  // namespace
}  // namespace denoised
