// Values by name: what a handler's dict is in C++, and arguments by name. No I/O.
#ifndef TR_MMAP_VALUES_HPP
#define TR_MMAP_VALUES_HPP

#include "macros_off.hpp"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "errors.hpp"
#include "tensor.hpp"

namespace tr {

/// One value: a tensor, a text, a number, a truth value, a list of values, or none (Python's None).
class Value {
public:
    using List = std::vector<Value>;

    Value() = default;  // none
    Value(std::nullptr_t) {}
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>  // not bool alone: a pointer becomes one
    Value(T number) {
        if constexpr (std::is_same_v<T, bool>) data_ = number;
        else if constexpr (std::is_floating_point_v<T>) data_ = static_cast<double>(number);
        else if constexpr (std::is_signed_v<T>) data_ = static_cast<std::int64_t>(number);
        else data_ = static_cast<std::uint64_t>(number);
    }
    Value(const char* text) : data_(std::string(text)) {}
    Value(std::string text) : data_(std::move(text)) {}
    Value(Tensor tensor) : data_(std::move(tensor)) {}
    Value(List list) : data_(std::move(list)) {}

    bool is_none() const noexcept { return std::holds_alternative<std::nullptr_t>(data_); }

    /// Whether get() of that type returns something.
    template <class T>
    bool is() const noexcept {
        if constexpr (std::is_same_v<T, bool> || !std::is_arithmetic_v<T>) {
            return std::holds_alternative<T>(data_);
        } else {
            return std::visit([](const auto& held) { return is_number_for<T>(held); }, data_);
        }
    }

    /// What it holds, as a bool, a number, a std::string, a Tensor or a Value::List. A number may be of any type that can
    /// hold it; a truth value is no number.
    ///
    /// @throws UnexpectedResponse it holds something else.
    template <class T>
    std::conditional_t<std::is_arithmetic_v<T>, T, const T&> get() const {
        static_assert(std::is_arithmetic_v<T> || std::is_same_v<T, std::string> || std::is_same_v<T, Tensor> ||
                          std::is_same_v<T, List>,
                      "a value is a bool, a number, a std::string, a tr::Tensor or a tr::Value::List");
        if (!is<T>()) {
            throw UnexpectedResponse("the value is " + describe() + ", and not of the type that was asked for", describe());
        }
        if constexpr (std::is_same_v<T, bool> || !std::is_arithmetic_v<T>) {
            return std::get<T>(data_);
        } else {
            T result{};
            std::visit(
                [&result](const auto& held) {
                    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(held)>>) result = static_cast<T>(held);
                },
                data_);
            return result;
        }
    }

    /// What it holds, in words: "a text" say.
    std::string describe() const {
        constexpr const char* names[] = {"none", "a truth value", "an integer", "an integer", "a real number",
                                         "a text", "a tensor", "a list"};
        return names[data_.index()];
    }

    /// Call a function with what it holds.
    template <class Visitor>
    decltype(auto) visit(Visitor visitor) const {
        return std::visit(std::move(visitor), data_);
    }

private:
    template <class T, class Held>
    static bool is_number_for(const Held& held) noexcept {
        if constexpr (std::is_same_v<Held, double>) {
            return std::is_floating_point_v<T>;
        } else if constexpr (std::is_same_v<Held, std::int64_t> || std::is_same_v<Held, std::uint64_t>) {
            if constexpr (std::is_floating_point_v<T>) return true;
            else if constexpr (std::is_same_v<Held, std::uint64_t>) return held <= static_cast<std::uint64_t>(most_of<T>());
            else if (held < 0) return std::is_signed_v<T> && held >= static_cast<std::int64_t>(least_of<T>());
            else return static_cast<std::uint64_t>(held) <= static_cast<std::uint64_t>(most_of<T>());
        } else {
            static_cast<void>(held);
            return false;
        }
    }
    template <class T>
    static constexpr T most_of() {
        return std::numeric_limits<T>::max();
    }
    template <class T>
    static constexpr T least_of() {
        return std::numeric_limits<T>::min();
    }

    std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Tensor, List> data_ = nullptr;
};

/// Values by name, sorted by it: ``tr::Values{{"points", tensor}, {"degree", 2}, {"label", "a test"}}``.
class Values : public std::map<std::string, Value> {
public:
    Values() = default;
    Values(std::initializer_list<value_type> values) : std::map<std::string, Value>(values) {}

    /// The value of a name.
    ///
    /// @throws UnexpectedResponse there is none.
    const Value& at(const std::string& name) const {
        const auto found = find(name);
        if (found != end()) return found->second;
        std::string names;
        for (const auto& each : *this) names += (names.empty() ? "" : ", ") + each.first;
        throw UnexpectedResponse("there is no value '" + name + "'; there are: " + (names.empty() ? "none" : names), names);
    }
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_VALUES_HPP
