// Tensors in files: save_tsr, load_tsr, read_header. Files are replaced whole and read through mappings, never copied.
#ifndef TR_MMAP_TSR_HPP
#define TR_MMAP_TSR_HPP

#include "macros_off.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "header.hpp"
#include "header_write.hpp"
#include "layout.hpp"
#include "system.hpp"
#include "tensor.hpp"

namespace tr {
namespace detail {

/// A file's payload, mapped read-only.
class FileStorage final : public Storage {
public:
    FileStorage(Mapping mapping, std::uint64_t offset) : mapping_(std::move(mapping)), offset_(offset) {}
    std::byte* data() override { return mapping_.data() + offset_; }
    bool is_writable() const noexcept override { return false; }

private:
    Mapping mapping_;
    std::uint64_t offset_;
};

/// A live segment was caught while its owner changed it.
struct InMotion {
    TSRFormatError fault;
};

inline Header header_of(const Fd& fd, const std::string& path) {
    const std::string raw = read_all(fd, MAX_HEADER_NBYTES, 0, path);
    try {
        return decode_header(raw.data(), raw.size(), file_nbytes(fd, path), path);
    } catch (const TSRFormatError& error) {
        // Faults that a reader may find in a live segment while its owner publishes it.
        const bool is_transient = error.fault == Fault::UNPUBLISHED || error.fault == Fault::TORN ||
                                  error.fault == Fault::HEADER_CHECKSUM;
        if (!is_transient) throw;
        const bool is_segment = static_cast<unsigned char>(raw[wire::flags_offset]) & wire::flag_segment;
        if (is_segment) throw InMotion{error};
        throw;
    }
}

/// Try again while a live segment's owner changes it (filling 64 MiB takes 15 ms); then throw the last fault.
template <class Action>
auto until_settled(Action action) {
    for (const double pause_s : {0.0, 0.001, 0.004, 0.016, 0.064}) {
        try {
            return action();
        } catch (const InMotion&) {
            sleep_s(pause_s);
        }
    }
    try {
        return action();
    } catch (const InMotion& last) {
        throw last.fault;
    }
}

inline Tensor view_file(const Fd& fd, const Header& header, const std::string& path, bool is_to_be_verified) {
    if (is_to_be_verified && !header.payload_checksum) {
        throw TSRFormatError(path + ": there is no checksum to verify; save the tensor with one, or do not verify it",
                             Fault::NO_CHECKSUM, path);
    }
    if (header.payload_nbytes == 0) {
        if (is_to_be_verified && *header.payload_checksum != 0) {
            throw TSRFormatError(path + ": the checksum of no bytes is 0, the header has another",
                                 Fault::PAYLOAD_CHECKSUM, path);
        }
        return Tensor(header.shape, header.dtype, nullptr);
    }
    Mapping mapping;
    try {
        mapping = map_read(fd, header.file_nbytes());
    } catch (const SystemLimit&) {
        throw;  // a limit of this process, not a defect of the file
    } catch (const SystemError& error) {
        if (error.code != ENOMEM) throw;
        const std::string nbytes = std::to_string(header.file_nbytes());
        throw TSRFormatError(path + ": " + nbytes + " bytes, more than this process can map", Fault::TOO_LARGE, path);
    }
    const std::byte* payload = mapping.data() + header.payload_offset;
    const auto nbytes = static_cast<std::size_t>(header.payload_nbytes);
    if (is_to_be_verified && crc32(payload, nbytes) != *header.payload_checksum) {
        throw TSRFormatError(
            path + ": the payload's checksum is not the header's: the data has changed since it was saved",
            Fault::PAYLOAD_CHECKSUM, path);
    }
    if (header.payload_offset % itemsize(header.dtype) != 0) {  // v0 puts payloads at byte 28
        Tensor copy = Tensor::empty(header.shape, header.dtype);
        std::memcpy(copy.data_ptr(), payload, nbytes);
        return copy;
    }
    return Tensor(header.shape, header.dtype, std::make_shared<FileStorage>(std::move(mapping), header.payload_offset));
}

inline Tensor load_once(const std::string& path, bool is_to_be_verified) {
    {
        const Fd fd = open_path(path);
        const Header header = header_of(fd, path);
        if (!header.is_segment) return view_file(fd, header, path, is_to_be_verified);
    }
    const Fd fd = open_path(path, true);
    const Header header = header_of(fd, path);  // the name may lead to another file by now
    if (header.is_segment) {
        // We store the guest mark, then read the header; the owner clears seq, then reads the mark. One sees the other.
        const Mapping head = map_write(fd, wire::v2_header_nbytes);
        store_word(words_of(head.data()) + wire::guest_word, 1);
        full_fence();
        if (header_of(fd, path) != header) {
            throw InMotion{TSRFormatError(path + ": replaced again and again while it was opened", Fault::TORN, path)};
        }
    }
    return view_file(fd, header, path, is_to_be_verified);
}

/// What must be replaced to give a user's path new content.
struct Replacement {
    std::string path;            // symlinks in its last part were followed, so that they survive
    std::optional<mode_t> mode;  // the permissions to keep; none if there is no such file yet
    bool has_name = true;        // false: a link of /proc/PID/fd leads to a memfd, or to a file that was removed
};

/// Find out what to replace; the path is resolved as open(2) does.
///
/// @throws HostilePath there is something else than a regular file.
/// @throws SystemError nothing is there, and the path is empty, ends in a slash, or holds a null character.
inline Replacement replacement_of(const std::string& path) {
    if (path.find('\0') != std::string::npos) throw SystemError(path, EINVAL);
    struct stat info;
    const bool is_there = ::stat(path.c_str(), &info) == 0;  // first: the kernel may forbid to follow another user's link
    if (!is_there && errno != ENOENT) throw SystemError(path, errno);
    if (is_there && !S_ISREG(info.st_mode)) refuse_path(path, "is not a regular file", tensor_rule);
    Replacement result{path, std::nullopt, true};
    std::array<char, 4096> link;
    bool is_on_proc = false;
    for (int hops = 0; hops < 40; ++hops) {
        const ssize_t length = ::readlink(result.path.c_str(), link.data(), link.size());
        if (length < 0) break;
        struct statfs system;
        constexpr auto proc_magic = 0x9FA0;  // linux/magic.h
        const std::string directory = directory_of(result.path);
        is_on_proc = is_on_proc || (::statfs(directory.c_str(), &system) == 0 && system.f_type == proc_magic);
        const std::string target(link.data(), static_cast<std::size_t>(length));
        result.path = !target.empty() && target[0] == '/' ? target : directory + "/" + target;
    }
    struct stat found;
    if (!is_there) {
        const std::size_t last = result.path.find_last_not_of('/');
        if (result.path.empty()) throw SystemError(path, ENOENT);
        if (last + 1 != result.path.size()) {
            const std::string directory = directory_of(result.path.substr(0, last + 1));
            throw SystemError(path, ::stat(directory.c_str(), &found) == 0 ? EISDIR : ENOENT);
        }
        return result;
    }
    result.mode = info.st_mode & 0777;
    const bool is_found = ::lstat(result.path.c_str(), &found) == 0 && found.st_dev == info.st_dev &&
                          found.st_ino == info.st_ino;
    result.has_name = is_found || !is_on_proc;  // elsewhere, somebody has replaced the file since
    return result;
}

inline void write_tensor(const Fd& fd, const Tensor& tensor, const std::vector<std::byte>& header,
                         const std::string& directory) {
    write_all(fd, tensor.data_ptr(), tensor.nbytes(), header.size(), directory);
    write_all(fd, header.data(), header.size(), 0, directory);
}

/// Overwrite a file that has no name, so that none can be renamed in its place. If this fails in the middle, the file
/// has no magic, and no reader takes it for the old tensor.
inline void overwrite(const std::string& path, const Tensor& tensor, const std::vector<std::byte>& header) {
    const Fd fd = open_path(path, true);
    // Not emptied first: a process that has it mapped would get SIGBUS.
    if (::ftruncate(fd.get(), static_cast<off_t>(header.size() + tensor.nbytes())) != 0) throw SystemError(path, errno);
    const std::array<char, 8> nothing{};
    write_all(fd, nothing.data(), nothing.size(), 0, path);
    write_tensor(fd, tensor, header, path);
}

}  // namespace detail

/// Write a tensor to a file, atomically: readers see the old file or the new one, and old views stay whole.
///
/// The new file keeps the old one's permissions, but neither its owner nor its set-user-id bits. A file without a name,
/// a memfd below /proc/self/fd say, is overwritten in place: a reader may see a part.
///
/// @param path a symlink is followed, also one to a file that does not exist yet.
/// @param version layout: 2; or 1 or 0 for older readers (dtype codes 1 to 8, at most four dimensions).
/// @param has_checksum store the payload's CRC-32; version 2 only.
/// @throws TSRFormatError UNREPRESENTABLE in that layout; BAD_VERSION.
/// @throws OutOfSpace the file system is full.
/// @throws HostilePath ``path`` is a directory, FIFO or device.
/// @throws SystemError ``path`` cannot name a file: it is empty or ends in a slash, or there is no such directory.
inline void save_tsr(const std::string& path, const Tensor& tensor, int version = 2, bool has_checksum = false) {
    Header header;
    header.version = version;
    header.dtype = tensor.dtype();
    header.shape = tensor.shape();
    header.created_ns = detail::now_ns();
    if (has_checksum) header.payload_checksum = version == 2 ? crc32(tensor.data_ptr(), tensor.nbytes()) : 0;
    const std::vector<std::byte> raw = encode_header(header);  // refuses before a file exists
    detail::check_file_limit(raw.size() + tensor.nbytes(), path);
    const std::string fixed = detail::fixed_path(path);
    const detail::Replacement target = detail::replacement_of(fixed);
    if (!target.has_name) return detail::overwrite(fixed, tensor, raw);
    const std::string temporary = detail::temporary_beside(target.path);
    const detail::Fd fd = detail::create_file(temporary, target.mode ? 0600 : 0666, target.path);
    detail::Unlinker unlinker(temporary);
    // A file system without permissions of its own refuses every change, and gives all files the same ones.
    if (target.mode && (detail::status_of(fd, temporary).st_mode & 07777) != *target.mode &&
        ::fchmod(fd.get(), *target.mode) != 0) {
        throw SystemError(target.path, errno);
    }
    detail::write_tensor(fd, tensor, raw, detail::directory_of(target.path));
    detail::rename_file(temporary, target.path);
    unlinker.keep();
}
inline void save_tsr(const Tensor& tensor, const std::string& path, int version = 2, bool has_checksum = false) {
    save_tsr(path, tensor, version, has_checksum);
}

/// A read-only tensor that lives in the file's pages; the cost does not depend on its size.
///
/// Do not truncate a file that is loaded (touching the lost pages is SIGBUS); replacing it, as save_tsr does, is safe.
/// A live segment of a session is marked as visited, so that its owner never reuses it; that needs write permission.
///
/// @param path any layout; a symlink is followed.
/// @param is_to_be_verified compare the payload with its CRC-32. Reads all of it.
/// @throws TSRFormatError any defect of the file; ``fault`` says which one. NO_CHECKSUM: there is none to verify.
/// @throws HostilePath not a regular file.
inline Tensor load_tsr(const std::string& path, bool is_to_be_verified = false) {
    return detail::until_settled([&] { return detail::load_once(path, is_to_be_verified); });
}

/// The checked header of a file of any layout; the payload is not touched.
inline Header read_header(const std::string& path) {
    return detail::until_settled([&] { return detail::header_of(detail::open_path(path), path); });
}

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_TSR_HPP
