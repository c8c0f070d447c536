#include "runtime/pipelines/model_folders.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace denoised {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ModelFoldersTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + "." +
             std::to_string(getpid()));
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  // A folder with a model_index.json; its content does not matter here.
  fs::path Model(const fs::path& below) {
    fs::create_directories(root_ / below);
    std::ofstream(root_ / below / "model_index.json") << "{}";
    return root_ / below;
  }
  void Reference(const fs::path& hub_folder, const std::string& revision) {
    fs::create_directories(root_ / hub_folder / "refs");
    std::ofstream(root_ / hub_folder / "refs/main") << revision << '\n';
  }
  static std::vector<std::string> Names(const std::vector<FoundModel>& models) {
    std::vector<std::string> names;
    for (const FoundModel& model : models) names.push_back(model.name);
    return names;
  }
  static std::string Problem(const FoundModel& model) {
    return model.problem ? model.problem->what() : "none";
  }
  std::string Refusal(const fs::path& repository) {
    try {
      FindModels(repository);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  fs::path root_;
};

TEST_F(ModelFoldersTest, TakesFoldersWithAnIndexByName) {
  Model("wan");
  Model("shapes");
  fs::create_directories(root_ / "no model");
  std::ofstream(root_ / "README.md") << "x";
  fs::create_directory_symlink(Model("elsewhere/deep"), root_ / "link");
  const auto models = FindModels(root_);
  EXPECT_THAT(Names(models), ElementsAre("link", "shapes", "wan"));
  for (const FoundModel& model : models) EXPECT_FALSE(model.problem) << Problem(model);
}

TEST_F(ModelFoldersTest, OneModelsFolderIsARepository) {
  const fs::path model = Model("wan");
  EXPECT_THAT(Names(FindModels(model)), ElementsAre("wan"));
  EXPECT_THAT(Names(FindModels(model / "")), ElementsAre("wan"));
  EXPECT_THAT(Names(FindModels(model / "../wan/.")), ElementsAre("wan"));
  fs::create_directory_symlink(model, root_ / "name that was given");
  EXPECT_THAT(Names(FindModels(root_ / "name that was given")), ElementsAre("name that was given"));
}

TEST_F(ModelFoldersTest, AnIndexThatIsALinkToNowhereIsAModelToo) {
  fs::create_directories(root_ / "half");
  fs::create_symlink("../../blobs/0", root_ / "half/model_index.json");
  EXPECT_THAT(Names(FindModels(root_)), ElementsAre("half"));
}

TEST_F(ModelFoldersTest, NothingThereIsSaid) {
  EXPECT_THAT(Refusal(root_ / "absent"), HasSubstr("absent: no such folder"));
  EXPECT_THAT(Refusal(root_), HasSubstr("no folder in it has a model_index.json"));
  for (int i = 0; i < 65; ++i) Model("m" + std::to_string(i));
  EXPECT_THAT(Refusal(root_), HasSubstr("more than 64 models"));
}

TEST_F(ModelFoldersTest, NamesThatCannotBeShownAreProblemsOfTheirOwn) {
  Model("mod\xe8le");
  Model("line\nbreak");
  Model("right\u202eleft");
  Model("good \u00e9");
  for (const FoundModel& model : FindModels(root_)) {
    if (model.name == "good \u00e9") {
      EXPECT_FALSE(model.problem);
      continue;
    }
    ASSERT_TRUE(model.problem) << model.name;
    EXPECT_EQ(model.problem->reason(), "BAD_MODEL_NAME");
    EXPECT_THAT(Problem(model), HasSubstr("must be UTF-8 without control characters"));
    EXPECT_THAT(Problem(model), HasSubstr("\\"));
  }
}

TEST_F(ModelFoldersTest, HuggingFacesCacheGivesTheSnapshotOfMain) {
  Model("hub/models--Wan-AI--Wan2.1-T2V/snapshots/old");
  const fs::path current = Model("hub/models--Wan-AI--Wan2.1-T2V/snapshots/new");
  Reference("hub/models--Wan-AI--Wan2.1-T2V", "new");
  fs::create_directories(root_ / "hub/models--org--llm/snapshots/x");
  Model("hub/models--bare/snapshots/only");
  for (const fs::path& repository : {root_, root_ / "hub"}) {
    const auto models = FindModels(repository);
    ASSERT_THAT(Names(models), ElementsAre("Wan-AI/Wan2.1-T2V", "bare"));
    EXPECT_EQ(models[0].folder, current);
    EXPECT_FALSE(models[0].problem) << Problem(models[0]);
    EXPECT_FALSE(models[1].problem) << Problem(models[1]);
  }
  EXPECT_THAT(Names(FindModels(root_ / "hub/models--bare")), ElementsAre("bare"));
  EXPECT_THAT(Names(FindModels(current)), ElementsAre("Wan-AI/Wan2.1-T2V"));
}

TEST_F(ModelFoldersTest, ASnapshotThatCannotBeChosenIsAProblemOfThatModel) {
  Model("models--a--b/snapshots/1");
  Model("models--a--b/snapshots/2");
  Model("models--c--d/snapshots/1");
  Reference("models--c--d", "2");
  Model("models--e--f/snapshots/1");
  Reference("models--e--f", "../../../models--a--b/snapshots/1");
  Model("models--g--h/snapshots/1");
  Reference("models--g--h", std::string(100'000, 'x'));
  const auto models = FindModels(root_);
  ASSERT_THAT(Names(models), ElementsAre("a/b", "c/d", "e/f", "g/h"));
  EXPECT_THAT(Problem(models[0]), HasSubstr("has no refs/main and 2 snapshots"));
  EXPECT_THAT(Problem(models[1]), HasSubstr("refs/main names snapshot 2, which is not there"));
  EXPECT_FALSE(models[2].problem);  // no plain name counts as none, and there is one snapshot
  EXPECT_THAT(Problem(models[3]), HasSubstr("refs/main: wanted at most"));
}

TEST_F(ModelFoldersTest, ANameIsNeverEmpty) {
  Model("models--/snapshots/1");
  EXPECT_THAT(Problem(FindModels(root_).at(0)), HasSubstr("must not be empty"));
}

TEST_F(ModelFoldersTest, OfEqualNamesTheFirstCounts) {
  Model("gpt");
  Model("models--gpt/snapshots/1");
  const auto models = FindModels(root_);
  ASSERT_THAT(Names(models), ElementsAre("gpt", "gpt"));
  EXPECT_FALSE(models[0].problem);
  EXPECT_THAT(Problem(models[1]), HasSubstr("another folder here gives the name 'gpt' too"));
}

}  // namespace
}  // namespace denoised
