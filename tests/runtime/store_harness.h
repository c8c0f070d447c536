// What tests of stores need: a log that can be read, jobs and requests.
#ifndef DENOISED_TESTS_RUNTIME_STORE_HARNESS_H_
#define DENOISED_TESTS_RUNTIME_STORE_HARNESS_H_

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "runtime/job_store.h"
#include "runtime/log.h"
#include "tests/temporary_folder.h"

namespace denoised {

// Its lines are for the test alone.
struct QuietLogger {
  std::FILE* stream = std::tmpfile();
  Logger logger{stream};

  ~QuietLogger() {
    logger.Flush(std::chrono::seconds(20));
    std::fclose(stream);
  }
  std::string Text() {
    logger.Flush(std::chrono::seconds(20));
    std::rewind(stream);
    std::string text;
    for (int c = std::fgetc(stream); c != EOF; c = std::fgetc(stream)) {
      text.push_back(static_cast<char>(c));
    }
    return text;
  }
};

inline std::string FileBytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void WriteBytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Files below `folder`, by their names.
inline std::vector<std::string> FilesIn(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

// The exit status of a child; 128 and more where a signal ended it.
inline int AwaitChild(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// How many processes die at each edge: 20, or as many as KILL_ROUNDS says.
inline int Asked(const char* variable, int usual) {
  const char* const asked = std::getenv(variable);
  return asked == nullptr ? usual : std::max(std::atoi(asked), 1);
}
inline int KillRounds() { return Asked("KILL_ROUNDS", 20); }

// What a test about an edge is called.
inline std::string NameOfEdge(std::string edge) {
  std::replace(edge.begin(), edge.end(), '.', '_');
  return edge;
}

inline JobSnapshot NewJob(const std::string& id) {
  JobSnapshot job;
  job.id = id;
  job.prompt = "a red circle";
  job.created_at = std::chrono::system_clock::now();
  return job;
}

inline GenerationRequest NewRequest(const std::string& prompt = "a red circle") {
  GenerationRequest request;
  request.prompt = prompt;
  request.formats = {ArtifactFormat::kMp4};
  return request;
}

inline void EndJob(JobStore& store, const std::string& id, JobState state) {
  store.Update(id, [=](JobSnapshot& job) {
    job.state = state;
    job.finished_at = std::chrono::system_clock::now();
  });
}

// Runs it, keeps one result and ends it.
inline void Complete(JobStore& store, const std::string& id, const std::string& bytes) {
  store.Start(id);
  store.PutArtifact(id, {ArtifactFormat::kMp4, "video.mp4", 0, ""}, bytes);
  const ArtifactInfo info = store.GetArtifact(id, ArtifactFormat::kMp4)->info();
  store.Update(id, [&](JobSnapshot& job) { job.artifacts = {info}; });
  EndJob(store, id, JobState::kSucceeded);
}

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_STORE_HARNESS_H_
