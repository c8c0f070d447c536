#include "runtime/store/audit_row.h"

#include "runtime/store/json_fields.h"

namespace denoised {

std::string WriteAuditRow(const AuditEntry& entry) {
  stored::Json json = {{"time", stored::ToMicros(entry.time)},
                       {"who", entry.who},
                       {"what", entry.what},
                       {"subject", entry.subject},
                       {"old", entry.old_value},
                       {"new", entry.new_value},
                       {"reason", entry.reason}};
  if (entry.ends_at) json["ends_at"] = stored::ToMicros(*entry.ends_at);
  return stored::Dump(json);
}

AuditEntry ReadAuditRow(uint64_t number, const std::string& text) {
  return stored::Parse(text, [&](const stored::Json& json) {
    AuditEntry entry;
    entry.number = number;
    entry.time = stored::ReadMoment(json.at("time"));
    json.at("who").get_to(entry.who);
    json.at("what").get_to(entry.what);
    json.at("subject").get_to(entry.subject);
    json.at("old").get_to(entry.old_value);
    json.at("new").get_to(entry.new_value);
    json.at("reason").get_to(entry.reason);
    if (const auto end = json.find("ends_at"); end != json.end()) {
      entry.ends_at = stored::ReadMoment(*end);
    }
    return entry;
  });
}

}  // namespace denoised
