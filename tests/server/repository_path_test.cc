#include "server/repository_path.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "backends/error.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RepositoryPathTest : public ::testing::Test {
 protected:
  RepositoryPathTest() { fs::create_directories(root_ / "work"); }
  ~RepositoryPathTest() override { fs::remove_all(root_); }

  std::string Find() const {
    return FindModelRepository(root_ / "work", root_ / "prefix/bin/denoised");
  }

  const fs::path root_ =
      fs::path(::testing::TempDir()) / ("denoised_repository_" + std::to_string(getpid()));
};

TEST_F(RepositoryPathTest, TheWorkingFoldersComesFirstThenTheInstalledOne) {
  fs::create_directories(root_ / "prefix/share/denoised/model_repository");
  EXPECT_EQ(Find(), (root_ / "prefix/share/denoised/model_repository").string());
  fs::create_directories(root_ / "work/model_repository");
  EXPECT_EQ(Find(), "model_repository");
}

TEST_F(RepositoryPathTest, WhereItLookedAndWhatToDoIsSaid) {
  try {
    Find();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kNotFound);
    EXPECT_THAT(error.what(), AllOf(HasSubstr((root_ / "work/model_repository").string()),
                                    HasSubstr((root_ / "prefix/share/denoised").string()),
                                    HasSubstr("--model_repository=DIR")));
  }
}

}  // namespace
}  // namespace denoised
