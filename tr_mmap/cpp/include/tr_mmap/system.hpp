// Every system call on files and mappings, so that the rules hold everywhere: a session's files are opened without
// following symlinks, descriptors are not inherited, files are 0600 and directories 0700. Decides nothing.
#ifndef TR_MMAP_SYSTEM_HPP
#define TR_MMAP_SYSTEM_HPP

#include "macros_off.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// An open file, closed with its owner.
class Fd {
public:
    Fd() = default;
    explicit Fd(int number) noexcept : number_(number) {}
    Fd(Fd&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Fd() {
        if (number_ >= 0) ::close(number_);
    }
    int get() const noexcept { return number_; }
    /// Give up ownership: the file stays open.
    void leave() noexcept { number_ = -1; }
    explicit operator bool() const noexcept { return number_ >= 0; }

private:
    int number_ = -1;
};

/// The same file under a number that is not below ``least``.
inline Fd at_least(int least, Fd fd) {
    if (!fd || fd.get() >= least) return fd;
    return Fd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, least));
}

/// The same file under a number above 2: this process may have closed its standard streams, and a process that we start
/// gets others in their place.
inline Fd above_standard_streams(Fd fd) { return at_least(STDERR_FILENO + 1, std::move(fd)); }

/// Whether a call failed because no descriptor was left; that says nothing about the file.
inline bool is_out_of_descriptors(int code) { return code == EMFILE || code == ENFILE; }

/// The content of a file of the system, below /proc say, up to ``limit`` bytes; empty if it cannot be read.
///
/// @param code set to the errno if it cannot be opened.
inline std::string read_proc(const std::string& path, std::size_t limit = 4096, int* code = nullptr) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd && code) *code = errno;
    std::string data;
    std::array<char, 4096> part;
    while (fd && data.size() < limit) {
        const ssize_t got = ::read(fd.get(), part.data(), std::min(part.size(), limit - data.size()));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        data.append(part.data(), static_cast<std::size_t>(got));
    }
    return data;
}

/// How many mappings this process has: lines of /proc/self/maps.
inline std::uint64_t count_mappings() {
    const Fd fd(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
    std::array<char, 4096> part;
    std::uint64_t lines = 0;
    while (fd) {
        const ssize_t got = ::read(fd.get(), part.data(), part.size());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        lines += static_cast<std::uint64_t>(std::count(part.begin(), part.begin() + got, '\n'));
    }
    return lines;
}

inline std::optional<std::uint64_t> limit_of(decltype(RLIMIT_AS) which) {
    struct rlimit limit;
    if (::getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return {};
    return static_cast<std::uint64_t>(limit.rlim_cur);
}

/// Throw the error of a system call that failed: SystemLimit if it was a limit, else SystemError.
[[noreturn]] inline void fail_call(const std::string& what, int code) {
    if (code == EMFILE) {
        throw SystemLimit(what, code, "RLIMIT_NOFILE", "close files, or raise the limit of open files (ulimit -n)");
    }
    if (code == ENFILE) throw SystemLimit(what, code, "fs.file-max", "the whole system has too many open files");
    if (code == EFBIG) {
        throw SystemLimit(what, code, "RLIMIT_FSIZE", "the file would be too large; raise the limit (ulimit -f)");
    }
    if (code == ENOMEM) {
        const std::uint64_t most = std::strtoull(read_proc("/proc/sys/vm/max_map_count").c_str(), nullptr, 10);
        constexpr std::uint64_t margin = 64;  // some are the kernel's; one call may need several
        if (most != 0 && count_mappings() + margin >= most) {
            throw SystemLimit(what, code, "vm.max_map_count",
                              "this process has as many mappings as it may: destroy tensors that were received or "
                              "loaded, or raise the limit (sysctl vm.max_map_count)");
        }
        if (limit_of(RLIMIT_AS)) {
            throw SystemLimit(what, code, "RLIMIT_AS", "this process may have no more memory (ulimit -v)");
        }
    }
    throw SystemError(what, code);
}

/// Part of a file in memory, unmapped with its owner.
class Mapping {
public:
    Mapping() = default;
    Mapping(const Fd& fd, std::uint64_t nbytes, int protection) {
        if (nbytes > std::numeric_limits<std::size_t>::max()) throw SystemError("mmap", ENOMEM);
        void* address = ::mmap(nullptr, static_cast<std::size_t>(nbytes), protection, MAP_SHARED, fd.get(), 0);
        if (address == MAP_FAILED) {
            const int code = errno;
            fail_call("mmap of " + std::to_string(nbytes) + " bytes", code);
        }
        data_ = static_cast<std::byte*>(address);
        nbytes_ = static_cast<std::size_t>(nbytes);
    }
    /// Take over a mapping that was made in another way.
    static Mapping adopt(void* address, std::size_t nbytes) {
        Mapping result;
        result.data_ = static_cast<std::byte*>(address);
        result.nbytes_ = nbytes;
        return result;
    }
    Mapping(Mapping&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), nbytes_(std::exchange(other.nbytes_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(nbytes_, other.nbytes_);
        return *this;
    }
    ~Mapping() {
        if (data_) ::munmap(data_, nbytes_);
    }
    /// Give up ownership: the memory stays mapped.
    void leave() noexcept { data_ = nullptr; }
    std::byte* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return nbytes_; }
    explicit operator bool() const noexcept { return data_ != nullptr; }

private:
    std::byte* data_ = nullptr;
    std::size_t nbytes_ = 0;
};

inline Mapping map_read(const Fd& fd, std::uint64_t nbytes) { return Mapping(fd, nbytes, PROT_READ); }
inline Mapping map_write(const Fd& fd, std::uint64_t nbytes) { return Mapping(fd, nbytes, PROT_READ | PROT_WRITE); }

inline struct stat status_of(const Fd& fd, const std::string& path) {
    struct stat info;
    if (::fstat(fd.get(), &info) != 0) fail_call(path, errno);
    return info;
}

inline std::uint64_t file_nbytes(const Fd& fd, const std::string& path) {
    return static_cast<std::uint64_t>(status_of(fd, path).st_size);
}

[[noreturn]] inline void refuse_path(const std::string& path, const std::string& reason, const char* rule) {
    throw HostilePath(path + " " + reason + "; " + rule, path, reason);
}

inline constexpr const char* private_rule = "a session only uses its owner's own files";
inline constexpr const char* tensor_rule = "a tensor file is one";

inline std::string directory_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

/// An absolute path, without ".". Each ".." is kept, because only the kernel knows where it leads after a symlink.
///
/// @throws ScriptNotFound it is relative, and the current directory is gone.
inline std::string absolute_path(const std::string& path) {
    std::error_code error;
    const std::filesystem::path whole = std::filesystem::absolute(path, error);
    if (error) {
        throw ScriptNotFound("'" + path + "' is relative, and this process has no current directory (" +
                                 error.message() + "); give an absolute path, or chdir(2) first",
                             path);
    }
    std::filesystem::path result;
    for (const std::filesystem::path& part : whole) {
        if (part != "." && !part.empty()) result /= part;
    }
    return result.string();
}

/// A path that means the same file in several calls, also if another thread changes the current directory: an absolute
/// path, if this user may use it (a directory above the current one may be closed to them); else the path as it is.
inline std::string fixed_path(const std::string& path) {
    std::error_code error;
    if (path.empty() || path[0] == '/' || path.find('\0') != std::string::npos) return path;
    const std::string whole = std::filesystem::current_path(error).string() + "/" + path;
    struct stat info;
    return !error && ::stat(directory_of(whole).c_str(), &info) == 0 ? whole : path;
}

/// Whether a path leads to a directory in which this user may make files.
inline bool is_usable_dir(const std::string& path) {
    struct stat info;
    return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) && ::access(path.c_str(), W_OK | X_OK) == 0;
}

/// Bytes that an unprivileged user may still write on the file system of ``path``; 0 if that cannot be told.
inline std::uint64_t free_nbytes(const std::string& path) {
    struct statvfs info;
    return ::statvfs(path.c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize : 0;
}

[[noreturn]] inline void out_of_space(std::uint64_t nbytes, const std::string& directory) {
    const std::uint64_t free = free_nbytes(directory);
    throw OutOfSpace(std::to_string(nbytes) + " bytes are needed in " + directory + ", " + std::to_string(free) +
                         " are free; drop tensors, free space, or set " + wire::workspace_variable +
                         " to a larger file system",
                     nbytes, free);
}

/// Throw the error of a call that could not make a name: OutOfSpace if the file system has no room for one more.
[[noreturn]] inline void refuse_name(const std::string& path, int code) {
    if (code != ENOSPC && code != EDQUOT) fail_call(path, code);
    const std::string directory = directory_of(path);
    const std::uint64_t free = free_nbytes(directory);
    throw OutOfSpace("there is no room for another file in " + directory + ", " + std::to_string(free) +
                         " bytes are free (it may be the number of files that is limited); remove some, or choose "
                         "another place",
                     1, free);
}

/// Open a session's file; refuses anything that only an attacker would put there. An empty Fd if there is no file.
///
/// @throws HostilePath a symlink, FIFO, device or directory, another user's file, or one that others may write.
inline Fd open_private_file(const std::string& path, bool is_for_writing = false) {
    // O_NONBLOCK: a FIFO in the file's place must not make us wait for its other end.
    Fd fd(::open(path.c_str(), (is_for_writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd) {
        if (errno == ENOENT) return fd;
        if (errno == ELOOP || errno == ENXIO || errno == ENODEV || errno == EISDIR) {
            refuse_path(path, "is a symlink, FIFO, device or directory", private_rule);
        }
        if (errno == EACCES) refuse_path(path, "may not be opened by this user", private_rule);
        fail_call(path, errno);
    }
    const struct stat info = status_of(fd, path);
    if (!S_ISREG(info.st_mode)) refuse_path(path, "is not a regular file", private_rule);
    if (info.st_uid != ::geteuid()) {
        refuse_path(path, "belongs to user " + std::to_string(info.st_uid), private_rule);
    }
    if (info.st_mode & 022) refuse_path(path, "may be written by group or others", private_rule);
    return fd;
}

/// Open a regular file that the user named: symlinks are followed, other owners are fine, nothing hangs.
inline Fd open_path(const std::string& path, bool is_for_writing = false) {
    if (path.find('\0') != std::string::npos) throw SystemError(path, EINVAL);  // the kernel would open another file
    Fd fd(::open(path.c_str(), (is_for_writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK));
    if (!fd) {
        if (errno == ENXIO || errno == EISDIR) refuse_path(path, "is not a regular file", tensor_rule);
        fail_call(path, errno);
    }
    if (!S_ISREG(status_of(fd, path).st_mode)) refuse_path(path, "is not a regular file", tensor_rule);
    return fd;
}

/// Create a file that must not exist, 0600 unless a user's own file is made, open for reading and writing.
///
/// @param told_as the path for error texts, if the new file has a temporary name.
/// @throws OutOfSpace the file system has no room for another file.
inline Fd create_file(const std::string& path, mode_t mode = 0600, const std::string& told_as = "") {
    Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
    if (!fd) refuse_name(told_as.empty() ? path : told_as, errno);
    return fd;
}

/// The directory that a path leads to now, told from another one that gets the path later. If somebody removes the
/// directory of a living session, and another session gets its name, this session must not use that one's files.
class KnownDirectory {
public:
    explicit KnownDirectory(std::string path) : path_(std::move(path)), key_(key_now()) {}
    const std::string& path() const noexcept { return path_; }

    /// Whether the path still leads to that directory.
    bool is_there() const noexcept { return key_now() == key_; }

    /// Call it before something is made there, and after something was opened there.
    ///
    /// @throws SessionNotStarted the path does not lead to that directory any more.
    void check() const {
        if (is_there()) return;
        throw SessionNotStarted("the session's directory, " + path_ + ", was removed or replaced by another session's "
                                "while the session lived; close() this session, and start another");
    }

private:
    /// Device, inode, and when it was made, because ext4 gives the inode of a removed directory to the next one.
    using Key = std::array<std::uint64_t, 4>;

    Key key_now() const noexcept {
#ifdef STATX_BTIME
        struct statx info;
        if (::statx(AT_FDCWD, path_.c_str(), AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &info) == 0) {
            const bool is_dated = (info.stx_mask & STATX_BTIME) != 0;
            return {static_cast<std::uint64_t>(info.stx_dev_major) << 32 | info.stx_dev_minor, info.stx_ino,
                    is_dated ? static_cast<std::uint64_t>(info.stx_btime.tv_sec) : 0,
                    is_dated ? info.stx_btime.tv_nsec : 0};
        }
#else
        struct stat info;
        if (::lstat(path_.c_str(), &info) == 0) return {info.st_dev, info.st_ino, 0, 0};
#endif
        return {};
    }

    std::string path_;
    Key key_;
};

/// Remove a name; it may be gone already.
inline void unlink_file(const std::string& path) noexcept { ::unlink(path.c_str()); }

/// Removes a name at the end of the scope, unless keep() was called.
class Unlinker {
public:
    explicit Unlinker(std::string path) : path_(std::move(path)) {}
    Unlinker(const Unlinker&) = delete;
    Unlinker& operator=(const Unlinker&) = delete;
    ~Unlinker() {
        if (is_armed_) unlink_file(path_);
    }
    void keep() noexcept { is_armed_ = false; }

private:
    std::string path_;
    bool is_armed_ = true;
};

/// Atomic; replaces ``to``, whose old readers keep what they have mapped.
inline void rename_file(const std::string& from, const std::string& to) {
    if (::rename(from.c_str(), to.c_str()) == 0) return;
    if (errno == EISDIR) refuse_path(to, "is a directory", private_rule);
    fail_call(to, errno);
}

inline constexpr long tmpfs_magic = 0x01021994;  // linux/magic.h

/// Whether the files of a directory are kept in memory.
inline bool is_on_tmpfs(const std::string& directory) {
    struct statfs system;
    return ::statfs(directory.c_str(), &system) == 0 && static_cast<long>(system.f_type) == tmpfs_magic;
}

/// Whether a file on tmpfs has holes: reading a hole allocates memory, and is SIGBUS when none is left. False on other
/// file systems, where reading a hole costs nothing, and where compression looks the same.
inline bool is_sparse(const Fd& fd, const std::string& path) {
    const struct stat info = status_of(fd, path);
    struct statfs system;
    return info.st_blocks * 512 < info.st_size && ::fstatfs(fd.get(), &system) == 0 &&
           static_cast<long>(system.f_type) == tmpfs_magic;
}

/// Throw SystemLimit if this process may not make a file that long. The call itself would raise SIGXFSZ, which by
/// default ends the process.
///
/// @param place the file, or its directory, for the message.
inline void check_file_limit(std::uint64_t nbytes, const std::string& place) {
    const auto limit = limit_of(RLIMIT_FSIZE);
    if (limit && nbytes > *limit) fail_call(place + ": a file of " + std::to_string(nbytes) + " bytes", EFBIG);
}

/// Throw OutOfSpace if the file cannot grow to that size. Without this check tmpfs would fill up before the call fails,
/// and other processes would fail meanwhile.
inline void check_possible(const Fd& fd, std::uint64_t nbytes, const std::string& directory) {
    if (nbytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) out_of_space(nbytes, directory);
    struct statvfs room;
    if (::fstatvfs(fd.get(), &room) != 0 || room.f_blocks == 0) return;  // a tmpfs without a limit says 0 of 0
    const std::uint64_t present = static_cast<std::uint64_t>(status_of(fd, directory).st_blocks) * 512;
    // f_bfree counts the blocks that are reserved for root too: whether we may use them is for the call itself to say.
    const std::uint64_t free = static_cast<std::uint64_t>(room.f_bfree) * room.f_frsize;
    if (nbytes > present && nbytes - present > free) out_of_space(nbytes, directory);
}

/// Give the file its blocks now: without them a store into its mapping is SIGBUS on a full tmpfs.
///
/// @throws OutOfSpace there is not room for ``nbytes``.
/// @throws SystemLimit this process, or this file system, may not have a file that long.
inline void allocate(const Fd& fd, std::uint64_t nbytes, const std::string& directory) {
    if (nbytes == 0) return;
    check_file_limit(nbytes, directory);
    check_possible(fd, nbytes, directory);
    int code = EINTR;
    while (code == EINTR) code = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(nbytes));
    if (code == ENOSPC || code == EDQUOT) out_of_space(nbytes, directory);
    if (code != 0) fail_call("posix_fallocate of " + std::to_string(nbytes) + " bytes", code);
}

/// Up to ``limit`` bytes of the file, from ``offset`` on.
inline std::string read_all(const Fd& fd, std::size_t limit, std::uint64_t offset, const std::string& path) {
    std::string data(std::min<std::size_t>(limit, 64 << 10), '\0');  // grows: ``limit`` may be far beyond the file
    std::size_t size = 0;
    while (size < limit) {
        if (size == data.size()) data.resize(std::min(limit, 2 * size));
        const ssize_t got = ::pread(fd.get(), &data[size], data.size() - size, static_cast<off_t>(offset + size));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail_call(path, errno);
        if (got == 0) break;
        size += static_cast<std::size_t>(got);
    }
    data.resize(size);
    return data;
}

inline void write_all(const Fd& fd, const void* data, std::size_t nbytes, std::uint64_t offset,
                      const std::string& directory) {
    if (nbytes != 0) check_file_limit(offset + nbytes, directory);
    const auto* bytes = static_cast<const char*>(data);
    std::size_t written = 0;
    while (written < nbytes) {
        const ssize_t put =
            ::pwrite(fd.get(), bytes + written, nbytes - written, static_cast<off_t>(offset + written));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && (errno == ENOSPC || errno == EDQUOT)) out_of_space(nbytes, directory);
        if (put < 0) {
            const int code = errno;
            fail_call("write in " + directory, code);
        }
        written += static_cast<std::size_t>(put);
    }
}

inline std::string random_bytes(std::size_t nbytes) {
    std::string bytes(nbytes, '\0');
    if (::getrandom(bytes.data(), nbytes, 0) != static_cast<ssize_t>(nbytes)) {
        std::random_device source;  // an old kernel, or a sandbox that forbids the call
        for (char& byte : bytes) byte = static_cast<char>(source());
    }
    return bytes;
}

/// Random bytes as hexadecimal digits, for names that no other process has.
inline std::string random_hex(std::size_t nbytes) {
    std::string text;
    for (const char each : random_bytes(nbytes)) {
        const auto byte = static_cast<unsigned char>(each);
        text += "0123456789abcdef"[byte >> 4];
        text += "0123456789abcdef"[byte & 15];
    }
    return text;
}

/// A name beside ``path`` that no other process has, for a file that a rename will put in the place of ``path``.
inline std::string temporary_beside(const std::string& path) {
    return directory_of(path) + "/" + wire::temporary_prefix + random_hex(8) + wire::temporary_suffix;
}

/// Make ``path`` a hard link of ``source``, in one step. It must not be one already: then rename(2) does nothing.
inline void replace_by_link(const std::string& source, const std::string& path) {
    const std::string temporary = temporary_beside(path);
    if (::link(source.c_str(), temporary.c_str()) != 0) refuse_name(temporary, errno);
    Unlinker unlinker(temporary);
    rename_file(temporary, path);
    unlinker.keep();
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SYSTEM_HPP
