"""`resnet-serve completion`."""

from __future__ import annotations

import click

COMMAND, VARIABLE = "resnet-serve", "_RESNET_SERVE_COMPLETE"
# click's own script does not handle bash's word breaks: bash splits words at colons and equals
# signs, which SPECs contain. This one joins them before it asks for completions, and strips what
# precedes the last colon from those.
BASH = """\
%(complete_func)s() {
    local word before rest=$COMP_LINE response type value current prefix="" i
    local -a words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ -n $word ]]; then
            before=${rest%%%%"$word"*}
            rest=${rest#*"$word"}
        else
            before=$([[ ${COMP_LINE:COMP_POINT-1:1} == [[:space:]] ]] && echo " ")
        fi
        if ((i > 0)) && [[ -z $before ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
    done
    current=${words[${#words[@]}-1]}
    local IFS=$'\\n'
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \\
        %(complete_var)s=bash_complete "$1")
    [[ $current == --*=* ]] && current=${current#*=}
    [[ $COMP_WORDBREAKS == *:* && $current == *:* ]] && prefix=${current%%"${current##*:}"}
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done <<< "$response"
    # More of a SPEC follows its colon.
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints a script that makes a shell complete this command.

    In ~/.bashrc: eval "$(resnet-serve completion bash)"; in ~/.zshrc, the same with zsh; for fish:
    resnet-serve completion fish > ~/.config/fish/completions/resnet-serve.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, COMMAND, VARIABLE)
    click.echo(BASH % script.source_vars() if shell == "bash" else script.source(), nl=False)
