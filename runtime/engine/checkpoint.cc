#include "runtime/engine/checkpoint.h"

#include <cinttypes>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/store/json_fields.h"
#include "runtime/store/lease_row.h"
#include "runtime/store/receipt_row.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

constexpr char kHead[] = "denoised checkpoint 1 %" PRIu64 " %" PRIu64 "\n";

Error Damaged(const std::string& what) {
  return Error(StatusCode::kDataLoss, "a checkpoint is damaged: " + what, "", "CHECKPOINT");
}

std::map<std::string, std::string> Named(const std::string& identity) {
  std::map<std::string, std::string> named;
  std::istringstream lines(identity);
  for (std::string line; std::getline(lines, line);) {
    const size_t split = line.find('=');
    if (split != std::string::npos) named[line.substr(0, split)] = line.substr(split + 1);
  }
  return named;
}

std::string Head(size_t words, size_t run) {
  char head[80];
  std::snprintf(head, sizeof head, kHead, static_cast<uint64_t>(words), static_cast<uint64_t>(run));
  return head;
}

Json WritePinned(const LeaseList& leases) {
  Json list = Json::array();
  for (const Lease& lease : leases) list.push_back(stored::WriteLease(lease));
  return list;
}

// In their order, which decides.
std::shared_ptr<const LeaseList> ReadPinned(const Json& list) {
  auto leases = std::make_shared<LeaseList>();
  for (const Json& lease : list) leases->push_back(stored::ReadLease(lease));
  return leases;
}

Checkpoint FromJson(const std::string& text) {
  return stored::Parse(text, [](const Json& json) {
    Checkpoint checkpoint;
    stored::ReadWhole(json, "step", &checkpoint.step);
    json.at("identity").get_to(checkpoint.identity);
    checkpoint.order = json.value("order", "");
    Receipt receipt = stored::ReadReceipt(json.at("receipt"));
    checkpoint.entries = std::move(receipt.entries);
    checkpoint.notes = std::move(receipt.notes);
    if (const auto pinned = json.find("pinned"); pinned != json.end()) {
      checkpoint.pinned = ReadPinned(*pinned);
    }
    return checkpoint;
  });
}

}  // namespace

std::string Checkpoint::Serialise() const {
  Receipt receipt;
  receipt.entries = entries;
  receipt.notes = notes;
  Json json = {{"step", step},
               {"identity", identity},
               {"order", order},
               {"receipt", stored::WriteReceipt(receipt)}};
  if (pinned) json["pinned"] = WritePinned(*pinned);
  const std::string words = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return Head(words.size(), run.size()) + words + run;
}

Checkpoint Checkpoint::Parse(const std::string& bytes) {
  if (bytes.empty()) return {};
  uint64_t words = 0, run = 0;
  if (std::sscanf(bytes.substr(0, 80).c_str(), kHead, &words, &run) != 2) {
    throw Damaged("it begins with something else");
  }
  const size_t begin = bytes.find('\n') + 1;  // 0 where its head does not end
  const size_t behind = bytes.size() - begin;
  if (begin == 0 || words > behind || run != behind - words) {
    throw Damaged("its length is not what its head says");
  }
  Checkpoint checkpoint = FromJson(bytes.substr(begin, words));
  checkpoint.run = bytes.substr(begin + words);
  return checkpoint;
}

std::string WhatDiffers(const std::string& before, const std::string& now) {
  const auto was = Named(before), is = Named(now);
  std::string text;
  for (const auto& [name, value] : is) {
    const auto found = was.find(name);
    const std::string old = found == was.end() ? "nothing" : found->second;
    if (old != value) text += (text.empty() ? "" : ", ") + name + " was " + old + ", is " + value;
  }
  for (const auto& [name, value] : was) {
    if (is.contains(name)) continue;
    text += (text.empty() ? "" : ", ") + name + " was " + value + ", is nothing";
  }
  return text;
}

}  // namespace denoised
