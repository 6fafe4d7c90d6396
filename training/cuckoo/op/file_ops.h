// Saves a table to a folder and restores it: one file a shard, on as many threads as the device has.
//
// Invariants
//   - Save writes each file aside, flushes it and renames it, so a file that is there is whole. The manifest makes a
//     folder a table; table.py writes it last.
//   - Restore loads into an empty table, or fails and leaves it empty.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "training/cuckoo/core/file.h"
#include "training/cuckoo/op/verb.h"

namespace cuckoo {

class FileVerb : public Verb {
 public:
  using Verb::Verb;

 protected:
  // Calls f(shard) for all shards, on the device's threads; the first failure is c's.
  template <class F>
  static void ForEachShard(OpKernelContext* c, TableResource* resource, F f) {
    const size_t shards = resource->table.config().shards;
    const size_t parts = std::min<size_t>(shards, c->device()->tensorflow_cpu_worker_threads()->num_threads);
    tensorflow::mutex mutex;
    absl::Status failed;
    InParts(c, parts, [&](size_t part) {
      for (size_t s = part; s < shards; s += parts) {
        try {
          f(s);
        } catch (const FileError& e) {
          const tensorflow::mutex_lock hold(mutex);
          failed.Update(tensorflow::errors::DataLoss("table ", resource->name, ": shard ", s, ": ", e.what()));
          return;
        }
      }
    });
    OP_REQUIRES_OK(c, failed);
  }

  static absl::Status Folder(OpKernelContext* c, std::string* folder) {
    tensorflow::tstring value;
    TF_RETURN_IF_ERROR(Scalar(c, "folder", &value));
    *folder = value;
    return absl::OkStatus();
  }

  static std::string Path(const std::string& folder, size_t shard) {
    char name[32];
    std::snprintf(name, sizeof name, "/shard-%03zu.table", shard);
    return folder + name;
  }

  class File {
   public:
    File(const std::string& path, int flags) : path_(path), fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
      if (fd_ < 0) Fail("open");
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { close(fd_); }
    int fd() const { return fd_; }
    void Flush() const {
      if (fsync(fd_) != 0) Fail("flush");
    }
    void Rename(const std::string& to) const {
      if (std::rename(path_.c_str(), to.c_str()) != 0) Fail("rename");
    }

   private:
    [[noreturn]] void Fail(const char* what) const {
      throw FileError(std::string(what) + " " + path_ + ": " + std::strerror(errno));
    }
    const std::string path_;
    const int fd_;
  };
};

class SaveOp : public FileVerb {
 public:
  using FileVerb::FileVerb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    std::string folder;
    OP_REQUIRES_OK(c, Folder(c, &folder));
    ForEachShard(c, resource, [&](size_t s) {
      const std::string path = Path(folder, s);
      const File file(path + ".part", O_WRONLY | O_CREAT | O_TRUNC);
      SaveShard(resource->table, s, file.fd());
      file.Flush();
      file.Rename(path);
    });
  }
};

class RestoreOp : public FileVerb {
 public:
  using FileVerb::FileVerb;

 private:
  void Do(OpKernelContext* c, TableResource* resource) override {
    std::string folder;
    OP_REQUIRES_OK(c, Folder(c, &folder));
    OP_REQUIRES(c, resource->table.stats().size == 0,
                InvalidArgument("table ", resource->name, " holds ", resource->table.stats().size,
                                " rows, allowed is an empty one"));
    ForEachShard(c, resource, [&](size_t s) {
      const File file(Path(folder, s), O_RDONLY);
      LoadShard(&resource->table, s, file.fd());
    });
    if (c->status().ok()) return;
    std::vector<int64_t> gone;
    resource->table.Evict(std::numeric_limits<uint32_t>::max(), &gone);
  }
};

}  // namespace cuckoo
