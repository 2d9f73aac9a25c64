// A file for people that shows the first line of a mapped page, or the latest line of a ring. It is written through a descriptor, never through a
// mapping, so no process that truncates, replaces or removes it can hurt us. Never throws: a mirror that cannot be
// written stays as it is, and is tried again. The Python side is tr_mmap/native/reference/mirror.py.
#ifndef TR_MMAP_MIRROR_HPP
#define TR_MMAP_MIRROR_HPP

#include "macros_off.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "clock.hpp"
#include "layout.hpp"
#include "ring.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// Not safe for threads.
class Mirror {
public:
    /// @param page stays mapped for as long as the mirror lives.
    /// @param kept a word: a line of the file that begins with it is not overwritten for a while; "" for no such word.
    Mirror(const Mapping& page, std::string path, std::string kept = "")
        : page_(&page), path_(std::move(path)), directory_(directory_of(path_)), kept_(std::move(kept)) {}
    /// @param ring whose latest slot is the page; lives as long as the mirror.
    Mirror(const Ring& ring, std::string path)
        : ring_(&ring), path_(std::move(path)), directory_(directory_of(path_)) {}
    Mirror(const Mirror&) = delete;
    Mirror& operator=(const Mirror&) = delete;
    ~Mirror() {
        struct stat info;
        is_open(info);
        close_file();
    }

    /// Put a new file in place of an earlier one; a name that cannot be freed stays without a mirror.
    void create() noexcept {
        unlink_file(path_);
        struct stat info;
        if (open_again(info, true)) show();
    }

    /// Whether the page's first 16 bytes are not those written last.
    bool is_stale() const noexcept { return read_head() != head_; }

    /// Write the page's line if the mirror is stale. A file that somebody wrote by hand a moment ago is left alone.
    void update() noexcept {
        if (is_stale()) show();
    }

    /// Treat the mirror as stale, because the other side may write the file.
    void forget() noexcept { head_ = {}; }

    /// For a status page: if the page says that the worker waits for requests, write "busy", else the page's line.
    /// After that the mirror is stale as soon as the page changes. A file that somebody wrote by hand a moment ago is
    /// left alone.
    void foretell_busy() noexcept {
        struct stat info;
        head_ = {};
        const Head head = read_head();
        const bool is_waiting = does_page_say(wire::status_ok) || does_page_say(wire::status_ready) ||
                                does_page_say(wire::status_error);
        if (!is_waiting) update();
        if (!is_waiting || !find_file(info) || is_by_hand(info)) return;
        head_ = head;
        write_line(wire::status_busy, std::strlen(wire::status_busy), info);
    }

private:
    using Head = std::array<std::uint64_t, 2>;

    const std::byte* page() const noexcept { return ring_ ? ring_->latest() : page_->data(); }

    Head read_head() const noexcept {
        const std::uint64_t* words = words_of(page());
        return {load_word(words), load_word(words + 1)};
    }

    void show() noexcept {
        struct stat info;
        if (!find_file(info) || is_by_hand(info)) return;
        for (int tries = 0; tries < 3; ++tries) {
            head_ = read_head();
            const char* const text = reinterpret_cast<const char*>(page());
            write_line(text, length_of_line(text), info);
            if (read_head() == head_) return;
            // The other side has replaced the status, and may have written its mirror before ours.
            info.st_size = static_cast<off_t>(nbytes_);
        }
    }

    std::size_t length_of_line(const char* text) const noexcept {
        const std::size_t nbytes = ring_ ? wire::ring_slot_nbytes : page_->size();
        const void* end = std::memchr(text, '\n', nbytes);
        return end ? static_cast<std::size_t>(static_cast<const char*>(end) - text) : nbytes;
    }

    bool does_page_say(std::string_view word) const noexcept {
        return std::memcmp(page(), word.data(), word.size()) == 0;  // the page has more bytes than any word
    }

    void write_line(const char* text, std::size_t nbytes, const struct stat& info) noexcept {
        try {
            std::string line(text, nbytes);
            line += '\n';
            if (line.size() < wire::mirror_nbytes) line.resize(wire::mirror_nbytes, ' ');
            nbytes_ = line.size();
            const ssize_t written = ::pwrite(fd_, line.data(), line.size(), 0);
            if (written < 0 || static_cast<std::size_t>(info.st_size) <= nbytes_) return;
            while (::ftruncate(fd_, static_cast<off_t>(nbytes_)) < 0 && errno == EINTR) continue;
        } catch (const std::bad_alloc&) {
            // The next message tries again.
        }
    }

    bool is_same(const struct stat& info) const noexcept {
        return info.st_dev == device_ && info.st_ino == inode_ && info.st_nlink == 1;
    }

    /// Whether the descriptor still belongs to the file that we opened. If not, the application has closed it, and its
    /// number may belong to another file by now.
    bool is_open(struct stat& info) noexcept {
        if (fd_ < 0) return false;
        if (::fstat(fd_, &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) return true;
        fd_ = -1;
        return false;
    }

    void close_file() noexcept {
        if (fd_ >= 0) ::close(fd_);
        fd_ = -1;
    }

    static Clock::duration check_pause() noexcept {
        constexpr std::chrono::duration<double> pause(wire::mirror_check_s);
        return std::chrono::duration_cast<Clock::duration>(pause);
    }

    /// Open the file of the mirror's name, unless it is open; false if that is not possible now.
    bool find_file(struct stat& info) noexcept {
        const Clock::time_point now = Clock::now();
        const bool is_due = now >= next_check_;
        if (fd_ < 0 && !is_due) return false;
        bool is_there = is_open(info) && info.st_nlink == 1;
        if (is_there && is_due) {
            struct stat named;
            is_there = ::lstat(path_.c_str(), &named) == 0 && is_same(named);
        }
        if (is_due) {
            next_check_ = now + check_pause();
        }
        return is_there || open_again(info, missed_ && now >= *missed_);
    }

    /// Open the file that the name leads to. Anything there but a regular file of ours and a directory is removed. A
    /// new file is made only with ``may_create``, some time after the old one has gone: somebody who removes the
    /// session's directory by hand removes this file first, and would find a new one in the directory.
    bool open_again(struct stat& info, bool may_create) noexcept {
        const int always = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
        close_file();
        if (!directory_.is_there()) return false;  // it was removed, and another session may have one of that name
        fd_ = ::open(path_.c_str(), always);
        bool is_in_the_way = fd_ < 0 && (errno == ELOOP || errno == ENXIO || errno == ENODEV || errno == EACCES);
        if (fd_ < 0 && errno != ENOENT && !is_in_the_way) return false;  // no descriptor is left, say
        if (fd_ < 0 && !is_in_the_way && !may_create) {
            if (!missed_) missed_ = Clock::now() + check_pause();
            return false;
        }
        nbytes_ = wire::mirror_nbytes;  // a file of another size was written by somebody else
        if (fd_ >= 0 && (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != ::geteuid() ||
                         info.st_nlink != 1)) {
            close_file();
            is_in_the_way = true;
        }
        if (fd_ < 0) {
            if (is_in_the_way) unlink_file(path_);
            fd_ = ::open(path_.c_str(), always | O_CREAT | O_EXCL, 0600);
            if (fd_ < 0) return false;
            if (::fstat(fd_, &info) != 0) {
                close_file();
                return false;
            }
            nbytes_ = 0;
        }
        missed_.reset();
        if ((info.st_mode & 07777) != 0600) (void)!::fchmod(fd_, 0600);  // else it would look like somebody's change
        device_ = info.st_dev;
        inode_ = info.st_ino;
        return true;
    }

    /// Whether somebody emptied or wrote the file by hand a moment ago: they may write on, or the worker may not have
    /// read it yet. By the time of change, which nobody can set: a copy or a file that was moved here may have an old
    /// time of writing.
    bool is_by_hand(const struct stat& info) const noexcept {
        if (static_cast<std::size_t>(info.st_size) == nbytes_ && !is_kept()) return false;
        struct timespec now;
        ::clock_gettime(CLOCK_REALTIME, &now);
        const double age_s = static_cast<double>(now.tv_sec - info.st_ctim.tv_sec) +
                             static_cast<double>(now.tv_nsec - info.st_ctim.tv_nsec) / 1e9;
        return std::fabs(age_s) < (info.st_size == 0 ? wire::empty_grace_s : wire::hand_grace_s);
    }

    /// Whether the file's line begins with the word that is kept, and the page's line does not.
    bool is_kept() const noexcept {
        char text[16];
        if (kept_.empty() || kept_.size() >= sizeof text || does_page_say(kept_)) return false;
        if (::pread(fd_, text, sizeof text, 0) <= static_cast<ssize_t>(kept_.size())) return false;
        if (std::memcmp(text, kept_.data(), kept_.size()) != 0) return false;
        return text[kept_.size()] < 'a' || text[kept_.size()] > 'z';  // the whole word
    }

    const Mapping* page_ = nullptr;
    const Ring* ring_ = nullptr;  // in place of a page
    std::string path_;
    KnownDirectory directory_;
    std::string kept_;
    int fd_ = -1;
    dev_t device_ = 0;  // identifies the file that we opened: the application may have closed the descriptor
    ino_t inode_ = 0;
    std::size_t nbytes_ = 0;  // the file's size when we last wrote it; another size shows that somebody else did
    Head head_{};
    Clock::time_point next_check_{};
    std::optional<Clock::time_point> missed_;  // when a file may be made, because there was none a while ago
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_MIRROR_HPP
