#include "runtime/engine/lease_keeping.h"

#include <chrono>
#include <cstdio>
#include <utility>
#include <vector>

namespace denoised {
namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

std::optional<system_clock::time_point> TimeOfDay(std::optional<steady_clock::time_point> moment,
                                                  steady_clock::time_point now) {
  if (!moment) return std::nullopt;
  return system_clock::now() + std::chrono::duration_cast<system_clock::duration>(*moment - now);
}

std::string TimeLeft(const Lease& lease, steady_clock::time_point now) {
  if (!lease.ends_at) return "no end";
  const std::chrono::duration<double> left = *lease.ends_at - now;
  char text[48];
  std::snprintf(text, sizeof text, "%.1f s left", left.count());
  return text;
}

std::string WhatHappened(const LeaseEvent& event) {
  switch (event.kind) {
    case LeaseEvent::Kind::kMade:
      return "force";
    case LeaseEvent::Kind::kRenewed:
      return "renew";
    case LeaseEvent::Kind::kEnded:
      break;
  }
  if (event.end == LeaseEnd::kReleased) return "release";
  return event.end == LeaseEnd::kExpired ? "expire" : "end";
}

// The cause of an end that nobody asked for, else what the operator gave.
std::string WhyOf(const LeaseEvent& event) {
  if (event.kind != LeaseEvent::Kind::kEnded) return event.lease.reason;
  if (event.end == LeaseEnd::kReleased || event.end == LeaseEnd::kExpired) return event.why;
  const std::string cause(LeaseEndName(event.end));
  return event.why.empty() ? cause : cause + ": " + event.why;
}

// `before`: the lease as it was; null where it is new.
AuditEntry EntryOf(const LeaseEvent& event, const Lease* before, steady_clock::time_point now) {
  AuditEntry entry;
  entry.who = event.by.empty() ? "server" : event.by;
  entry.what = WhatHappened(event);
  entry.subject = event.lease.id;
  entry.reason = WhyOf(event);
  switch (event.kind) {
    case LeaseEvent::Kind::kMade:
      entry.new_value = Described(event.lease);
      break;
    case LeaseEvent::Kind::kRenewed:
      entry.old_value = before == nullptr ? "" : TimeLeft(*before, now);
      entry.new_value = TimeLeft(event.lease, now);
      break;
    case LeaseEvent::Kind::kEnded:
      entry.old_value = Described(event.lease);
      return entry;
  }
  entry.ends_at = TimeOfDay(event.lease.ends_at, now);
  return entry;
}

}  // namespace

std::string Described(const Lease& lease) {
  std::string text = std::string(AttnBackendName(lease.backend)) + ", " + ToText(lease.scope);
  if (lease.mode == SelectionMode::kStrict) text += ", strict";
  if (lease.held) text += ", held";
  if (!lease.parameters.empty()) text += ", with " + lease.parameters;
  if (lease.budget) text += ", " + ToText(*lease.budget);
  return text;
}

LeaseKeeping::LeaseKeeping(SelectionPolicy* policy, const ControlStore& store, Audit* audit,
                           SelectionPolicy::Clock clock)
    : policy_(policy), audit_(audit), clock_(std::move(clock)) {
  Restore(store.LoadLeases());
  policy_->SetListener([this](const LeaseEvent& event) { Hear(event); });
}

LeaseKeeping::~LeaseKeeping() { policy_->SetListener({}); }

void LeaseKeeping::Restore(KeptLeases kept) {
  std::vector<AuditRecord> records;
  for (const Lease& lease : kept.over) {
    LeaseEvent event;
    event.kind = LeaseEvent::Kind::kEnded;
    event.lease = lease;
    event.end = LeaseEnd::kExpired;
    event.why = "its time was over while no server ran";
    records.push_back(
        {EntryOf(event, nullptr, clock_()), LeaseChange{lease, /*live=*/false, ++kept.generation}});
  }
  if (!records.empty()) audit_->Write(std::move(records));
  for (const Lease& lease : kept.live) live_[lease.id] = lease;
  policy_->Restore(std::move(kept.live), kept.generation);
}

void LeaseKeeping::Hear(const LeaseEvent& event) {
  const bool live = event.kind != LeaseEvent::Kind::kEnded;
  const auto before = live_.find(event.lease.id);
  std::vector<AuditRecord> records;
  records.push_back({EntryOf(event, before == live_.end() ? nullptr : &before->second, clock_()),
                     LeaseChange{event.lease, live, event.generation}});
  audit_->Write(std::move(records));
  if (live) {
    live_[event.lease.id] = event.lease;
  } else {
    live_.erase(event.lease.id);
  }
}

}  // namespace denoised
