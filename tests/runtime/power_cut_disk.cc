#include "tests/runtime/power_cut_disk.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>

#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

constexpr int64_t kSector = 512;
constexpr char kName[] = "power_cut";
constexpr int kJournals = SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL;

// Of the disk that lives; for an extension that SQLite calls without a context.
std::string asked_synchronous;

int SetSynchronous(sqlite3* database, const char**, const sqlite3_api_routines*) {
  return sqlite3_exec(database, ("PRAGMA synchronous = " + asked_synchronous).c_str(), nullptr,
                      nullptr, nullptr);
}

}  // namespace

struct PowerCutDisk::Handle {
  sqlite3_file base;
  PowerCutDisk* disk;
  FilePtr file;
  std::string name;  // to be removed at its end; "" = it stays
  bool journal;
};

struct PowerCutDisk::Calls {
  static Handle* Of(sqlite3_file* file) { return reinterpret_cast<Handle*>(file); }
  static PowerCutDisk* Of(sqlite3_vfs* vfs) { return static_cast<PowerCutDisk*>(vfs->pAppData); }

  // ---- a file

  static int Close(sqlite3_file* base) {
    Handle* const handle = Of(base);
    const std::lock_guard lock(handle->disk->mutex_);
    if (!handle->name.empty()) handle->disk->names_.erase(handle->name);
    handle->~Handle();
    return SQLITE_OK;
  }
  static int Read(sqlite3_file* base, void* to, int count, sqlite3_int64 offset) {
    const std::lock_guard lock(Of(base)->disk->mutex_);
    const std::string& bytes = Of(base)->file->now;
    const size_t begin = std::min(bytes.size(), static_cast<size_t>(offset));
    const size_t got = bytes.copy(static_cast<char*>(to), static_cast<size_t>(count), begin);
    std::memset(static_cast<char*>(to) + got, 0, static_cast<size_t>(count) - got);
    return got == static_cast<size_t>(count) ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
  }
  static int Write(sqlite3_file* base, const void* from, int count, sqlite3_int64 offset) {
    const std::lock_guard lock(Of(base)->disk->mutex_);
    if (!Of(base)->disk->Changes()) return SQLITE_IOERR_WRITE;
    File* const file = Of(base)->file.get();
    const std::string_view bytes(static_cast<const char*>(from), static_cast<size_t>(count));
    const size_t end = static_cast<size_t>(offset) + bytes.size();
    if (file->now.size() < end) file->now.resize(end, '\0');
    bytes.copy(file->now.data() + offset, bytes.size());
    file->since.push_back({false, offset, std::string(bytes)});
    return SQLITE_OK;
  }
  static int Truncate(sqlite3_file* base, sqlite3_int64 size) {
    const std::lock_guard lock(Of(base)->disk->mutex_);
    if (!Of(base)->disk->Changes()) return SQLITE_IOERR_TRUNCATE;
    Of(base)->file->now.resize(static_cast<size_t>(size), '\0');
    Of(base)->file->since.push_back({true, size, ""});
    return SQLITE_OK;
  }
  static int Sync(sqlite3_file* base, int) {
    PowerCutDisk* const disk = Of(base)->disk;
    const std::lock_guard lock(disk->mutex_);
    if (!disk->Changes()) return SQLITE_IOERR_FSYNC;
    Of(base)->file->synced = Of(base)->file->now;
    Of(base)->file->since.clear();
    // Once a handle: what SQLite's own does for a journal that it has made.
    if (std::exchange(Of(base)->journal, false)) disk->synced_names_ = disk->names_;
    return SQLITE_OK;
  }
  static int Size(sqlite3_file* base, sqlite3_int64* size) {
    const std::lock_guard lock(Of(base)->disk->mutex_);
    *size = static_cast<sqlite3_int64>(Of(base)->file->now.size());
    return SQLITE_OK;
  }
  static int Lock(sqlite3_file*, int) { return SQLITE_OK; }
  static int IsReserved(sqlite3_file*, int* reserved) {
    *reserved = 0;
    return SQLITE_OK;
  }
  // A pragma that is answered with "done" here is done.
  static int Control(sqlite3_file* base, int operation, void* argument) {
    if (operation != SQLITE_FCNTL_PRAGMA || Of(base)->disk->synchronous_.empty()) {
      return SQLITE_NOTFOUND;
    }
    const auto* const words = static_cast<char**>(argument);
    const bool asks = words[2] != nullptr && std::string_view(words[1]) == "synchronous" &&
                      words[2] != Of(base)->disk->synchronous_;
    return asks ? SQLITE_OK : SQLITE_NOTFOUND;
  }
  // As SQLite's own has them.
  static int SectorSize(sqlite3_file*) { return 4096; }
  static int Characteristics(sqlite3_file*) { return SQLITE_IOCAP_POWERSAFE_OVERWRITE; }

  static sqlite3_io_methods Methods() {
    sqlite3_io_methods methods = {};
    methods.iVersion = 1;
    methods.xClose = Close;
    methods.xRead = Read;
    methods.xWrite = Write;
    methods.xTruncate = Truncate;
    methods.xSync = Sync;
    methods.xFileSize = Size;
    methods.xLock = methods.xUnlock = Lock;
    methods.xCheckReservedLock = IsReserved;
    methods.xFileControl = Control;
    methods.xSectorSize = SectorSize;
    methods.xDeviceCharacteristics = Characteristics;
    return methods;
  }

  // ---- the folder

  static int Open(sqlite3_vfs* vfs, const char* path, sqlite3_file* base, int flags, int* out) {
    static const sqlite3_io_methods kMethods = Methods();
    PowerCutDisk* const disk = Of(vfs);
    base->pMethods = nullptr;
    const std::lock_guard lock(disk->mutex_);
    const std::string name = path == nullptr ? "temporary" : path;
    FilePtr file = disk->Find(name);
    bool made = false;
    if (file == nullptr) {
      if ((flags & SQLITE_OPEN_CREATE) == 0) return SQLITE_CANTOPEN;
      if (!disk->Changes()) return SQLITE_CANTOPEN;
      file = disk->names_[name] = std::make_shared<File>();
      made = true;
    }
    const bool removed = (flags & SQLITE_OPEN_DELETEONCLOSE) != 0;
    new (base) Handle{
        {&kMethods}, disk, std::move(file), removed ? name : "", made && (flags & kJournals) != 0};
    if (out != nullptr) *out = flags;
    return SQLITE_OK;
  }
  static int Delete(sqlite3_vfs* vfs, const char* path, int sync_folder) {
    PowerCutDisk* const disk = Of(vfs);
    const std::lock_guard lock(disk->mutex_);
    if (disk->Find(path) == nullptr) return SQLITE_IOERR_DELETE_NOENT;
    if (!disk->Changes()) return SQLITE_IOERR_DELETE;
    disk->names_.erase(path);
    if (sync_folder == 0) return SQLITE_OK;
    if (!disk->Changes()) return SQLITE_IOERR_DIR_FSYNC;
    disk->synced_names_ = disk->names_;
    return SQLITE_OK;
  }
  static int Access(sqlite3_vfs* vfs, const char* path, int flags, int* yes) {
    const std::lock_guard lock(Of(vfs)->mutex_);
    const FilePtr file = Of(vfs)->Find(path);
    *yes = file != nullptr && (flags != SQLITE_ACCESS_EXISTS || !file->now.empty()) ? 1 : 0;
    return SQLITE_OK;
  }
  static int FullPath(sqlite3_vfs* vfs, const char* path, int size, char* to) {
    sqlite3_vfs* const own = Of(vfs)->own_;
    return own->xFullPathname(own, path, size, to);
  }
  static int Random(sqlite3_vfs* vfs, int count, char* to) {
    return Of(vfs)->own_->xRandomness(Of(vfs)->own_, count, to);
  }
  static int Sleep(sqlite3_vfs* vfs, int microseconds) {
    return Of(vfs)->own_->xSleep(Of(vfs)->own_, microseconds);
  }
  static int Time(sqlite3_vfs* vfs, double* days) {
    return Of(vfs)->own_->xCurrentTime(Of(vfs)->own_, days);
  }
  static int LastError(sqlite3_vfs*, int, char*) { return 0; }
  static void FillIn(PowerCutDisk* disk) {
    sqlite3_vfs& vfs = disk->vfs_;
    vfs.iVersion = 1;
    vfs.szOsFile = sizeof(Handle);
    vfs.mxPathname = disk->own_->mxPathname;
    vfs.zName = kName;
    vfs.pAppData = disk;
    vfs.xOpen = Open;
    vfs.xDelete = Delete;
    vfs.xAccess = Access;
    vfs.xFullPathname = FullPath;
    vfs.xRandomness = Random;
    vfs.xSleep = Sleep;
    vfs.xCurrentTime = Time;
    vfs.xGetLastError = LastError;
  }
};

PowerCutDisk::PowerCutDisk(const std::filesystem::path& folder, const Cut& cut,
                           const std::string& synchronous)
    : folder_(folder),
      cut_(cut),
      synchronous_(synchronous),
      random_(cut.seed),
      own_(sqlite3_vfs_find(nullptr)) {
  constexpr double kShares[] = {0.1, 0.5, 0.9, 1};
  kept_share_ = cut.loses_all ? 0 : kShares[random_() % std::size(kShares)];
  for (const std::string& name : FilesIn(folder)) {
    const std::string path = folder / name;
    if (name.starts_with("jobs.sqlite")) {
      names_[path] = std::make_shared<File>(File{FileBytes(path), FileBytes(path), {}});
    }
  }
  synced_names_ = names_;
  Calls::FillIn(this);
  sqlite3_vfs_register(&vfs_, 1);
  asked_synchronous = synchronous;
  if (synchronous.empty()) return;
  sqlite3_auto_extension(reinterpret_cast<void (*)()>(SetSynchronous));
}

PowerCutDisk::~PowerCutDisk() {
  sqlite3_reset_auto_extension();
  sqlite3_vfs_unregister(&vfs_);
  sqlite3_vfs_register(own_, 1);
  if (!dark_) LosePower();
  for (const std::string& name : FilesIn(folder_)) {
    if (name.starts_with("jobs.sqlite")) std::filesystem::remove(folder_ / name);
  }
  for (const auto& [path, bytes] : left_) WriteBytes(path, bytes);
}

bool PowerCutDisk::dark() const {
  const std::lock_guard lock(mutex_);
  return dark_;
}

bool PowerCutDisk::Changes() {
  if (!dark_ && ++operations_ == cut_.at) LosePower();
  return !dark_;
}

// What the process made beside SQLite, without a sync, is new here.
PowerCutDisk::FilePtr PowerCutDisk::Find(const std::string& name) {
  const auto found = names_.find(name);
  if (found != names_.end()) return found->second;
  if (!std::filesystem::exists(name) || synced_names_.contains(name)) return nullptr;
  return names_[name] = std::make_shared<File>(File{FileBytes(name), "", {}});
}

bool PowerCutDisk::Keeps() {
  return std::uniform_real_distribution<double>(0, 1)(random_) < kept_share_;
}

void PowerCutDisk::LosePower() {
  dark_ = true;
  Names all = names_;
  all.insert(synced_names_.begin(), synced_names_.end());
  for (const auto& [name, file] : all) {
    const Names& names = Keeps() ? names_ : synced_names_;
    const auto found = names.find(name);
    if (found != names.end()) left_[name] = Survives(*found->second);
  }
}

std::string PowerCutDisk::Survives(const File& file) {
  std::string bytes = file.synced;
  for (const Change& change : file.since) Apply(change, &bytes);
  return bytes;
}

void PowerCutDisk::Grow(size_t size, std::string* bytes) {
  while (bytes->size() < size) bytes->push_back(static_cast<char>(random_()));
}

void PowerCutDisk::Apply(const Change& change, std::string* bytes) {
  const auto end = change.offset + static_cast<int64_t>(change.bytes.size());
  if (change.truncates) {
    if (!Keeps()) return;
    Grow(static_cast<size_t>(change.offset), bytes);
    bytes->resize(static_cast<size_t>(change.offset));
    return;
  }
  if (Keeps()) Grow(static_cast<size_t>(end), bytes);  // its size, whatever becomes of its bytes
  for (int64_t begin = change.offset; begin < end;) {
    const int64_t next = std::min(end, (begin / kSector + 1) * kSector);
    if (Keeps()) {
      Grow(static_cast<size_t>(next), bytes);
      change.bytes.copy(bytes->data() + begin, static_cast<size_t>(next - begin),
                        static_cast<size_t>(begin - change.offset));
    }
    begin = next;
  }
}

}  // namespace denoised
