// The file that a result goes to: whole or not there, and where people expect it.
#include "server/cli/output_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "server/cli/command.h"

namespace denoised::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class OutputFileTest : public ::testing::Test {
 protected:
  OutputFileTest() { fs::create_directories(folder_); }
  ~OutputFileTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ / name; }
  std::string Text(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(Path(name)).rdbuf();
    return text.str();
  }
  void Put(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name)) << text;
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string Refusal(const std::string& path) {
    try {
      OutputFile file(path, &interrupts_);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }
  mode_t Mode(const std::string& name) const {
    struct stat info {};
    stat(Path(name).c_str(), &info);
    return info.st_mode & 07777;
  }

  const fs::path folder_ =
      fs::path(::testing::TempDir()) / ("denoised_output_" + std::to_string(getpid()));
  Interrupts interrupts_;
};

TEST_F(OutputFileTest, IsThereWhenItIsCommittedAndNotBefore) {
  OutputFile file(Path("a.mp4"), &interrupts_);
  file.Write("first ");
  file.Write("second");
  EXPECT_FALSE(fs::exists(Path("a.mp4")));
  file.Commit();
  EXPECT_EQ(file.size(), 12u);
  EXPECT_EQ(Text("a.mp4"), "first second");
  EXPECT_THAT(Names(), ElementsAre("a.mp4"));
}

TEST_F(OutputFileTest, WhatWasThereStaysWhereItIsNotCommitted) {
  Put("a.mp4", "old");
  {
    OutputFile file(Path("a.mp4"), &interrupts_);
    file.Write("new");
    EXPECT_EQ(Text("a.mp4"), "old");
  }
  EXPECT_EQ(Text("a.mp4"), "old");
  EXPECT_THAT(Names(), ElementsAre("a.mp4"));
}

TEST_F(OutputFileTest, TwoIntoOnePathLeaveOneOfTheTwo) {
  OutputFile one(Path("a.mp4"), &interrupts_);
  OutputFile two(Path("a.mp4"), &interrupts_);
  one.Write("1111");
  two.Write("22");
  one.Write("1111");
  two.Commit();
  EXPECT_EQ(Text("a.mp4"), "22");
  one.Commit();
  EXPECT_EQ(Text("a.mp4"), "11111111");
  EXPECT_THAT(Names(), ElementsAre("a.mp4"));
}

TEST_F(OutputFileTest, LinksAreFollowedToTheLastFile) {
  fs::create_directories(folder_ / "sub");
  Put("sub/target.mp4", "old");
  fs::create_symlink("sub/target.mp4", Path("one"));
  fs::create_symlink("one", Path("two"));
  OutputFile file(Path("two"), &interrupts_);
  file.Write("new");
  file.Commit();
  EXPECT_TRUE(fs::is_symlink(Path("two")));
  EXPECT_TRUE(fs::is_symlink(Path("one")));
  EXPECT_EQ(Text("sub/target.mp4"), "new");
}

TEST_F(OutputFileTest, ALinkToNothingMakesItsTarget) {
  fs::create_symlink("later.mp4", Path("link.mp4"));
  OutputFile file(Path("link.mp4"), &interrupts_);
  file.Write("new");
  file.Commit();
  EXPECT_TRUE(fs::is_symlink(Path("link.mp4")));
  EXPECT_EQ(Text("later.mp4"), "new");
}

TEST_F(OutputFileTest, LinksInACircleAreRefused) {
  fs::create_symlink("b", Path("a"));
  fs::create_symlink("a", Path("b"));
  EXPECT_THAT(Refusal(Path("a")), HasSubstr("cannot write " + Path("a")));
}

TEST_F(OutputFileTest, NewFilesFollowTheUmaskAndOldOnesKeepTheirMode) {
  const mode_t before = umask(027);
  for (const char* name : {"new.mp4", "old.mp4"}) {
    if (std::string(name) == "old.mp4") {
      Put(name, "old");
      chmod(Path(name).c_str(), 0604);
    }
    OutputFile file(Path(name), &interrupts_);
    file.Commit();
  }
  umask(before);
  EXPECT_EQ(Mode("new.mp4"), 0640u);
  EXPECT_EQ(Mode("old.mp4"), 0604u);
}

TEST_F(OutputFileTest, PlacesThatCannotBeWrittenAreRefusedAtOnce) {
  EXPECT_THAT(Refusal(Path("none/a.mp4")), HasSubstr("cannot write " + Path("none/a.mp4")));
  EXPECT_THAT(Refusal(folder_), HasSubstr("it is a folder"));
  EXPECT_THAT(Refusal(Path("new/")), HasSubstr("it is a folder"));
  EXPECT_THAT(Refusal("/proc/a.mp4"), HasSubstr("cannot write /proc/a.mp4"));
  Put("file", "");
  EXPECT_THAT(Refusal(Path("file/a.mp4")), HasSubstr("Not a directory"));
  EXPECT_THAT(Names(), ElementsAre("file"));
}

TEST_F(OutputFileTest, PipesAndDevicesAreWrittenAsTheyAre) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  const int reader = open(Path("pipe").c_str(), O_RDONLY | O_NONBLOCK);
  {
    OutputFile file(Path("pipe"), &interrupts_);
    file.Write("through");
    file.Commit();
  }
  std::string text(16, '\0');
  text.resize(static_cast<size_t>(std::max<ssize_t>(0, read(reader, text.data(), text.size()))));
  close(reader);
  EXPECT_EQ(text, "through");
  EXPECT_TRUE(fs::is_fifo(Path("pipe")));
  EXPECT_EQ(Refusal("/dev/null"), "");
}

TEST_F(OutputFileTest, AFullDeviceIsAnError) {
  OutputFile file("/dev/full", &interrupts_);
  EXPECT_THROW(file.Write("x"), CommandError);
}

TEST_F(OutputFileTest, AnotherWriterMayFillItByName) {
  OutputFile file(Path("o.safetensors"), &interrupts_);
  std::ofstream(file.written_path()) << "by name";
  file.Commit();
  EXPECT_EQ(Text("o.safetensors"), "by name");
}

// A program that is ended in the middle of writing; returns how it ended.
int EndedInTheMiddleBy(int number, const std::string& path, bool ignored = false) {
  int ready[2];
  EXPECT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (ignored) signal(number, SIG_IGN);
    Interrupts interrupts;
    OutputFile file(path, &interrupts);
    file.Write("half");
    if (write(ready[1], "x", 1) != 1) _exit(1);
    if (ignored) {
      kill(getpid(), number);
      file.Commit();
      _exit(0);
    }
    while (true) pause();
  }
  char byte = 0;
  EXPECT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  close(ready[1]);
  if (!ignored) kill(child, number);
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

TEST_F(OutputFileTest, NothingIsLeftWhereASignalEndsTheProgram) {
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    const int status = EndedInTheMiddleBy(number, Path("a.mp4"));
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == number) << status;
    EXPECT_THAT(Names(), IsEmpty());
  }
}

TEST_F(OutputFileTest, ASignalThatTheParentIgnoresDoesNotEndTheProgram) {
  EXPECT_EQ(EndedInTheMiddleBy(SIGHUP, Path("a.mp4"), /*ignored=*/true), 0);
  EXPECT_EQ(Text("a.mp4"), "half");
}

}  // namespace
}  // namespace denoised::cli
